"""A multimodal checkpoint becomes the text model inside it: its configuration is taken out, what is for images is left.

Each function turns what the file says of the text into the configuration of a family that Lathe has; rules turn the
names, on reading only. What is written back is a plain text model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lathe.families.keys import Keys
from lathe.weights.rules import Adopt, Drop, Rule, Top

Config = dict[str, Any]

# What multimodal configurations say of images and of the ids that stand for them.
IMAGES = frozenset(
    """
    vision_config image_token_id image_token_index video_token_id video_token_index vision_start_token_id
    vision_end_token_id vision_token_id boi_token_id boi_token_index eoi_token_id eoi_token_index mm_tokens_per_image
    multimodal_projector_bias projector_hidden_act vision_feature_layer vision_feature_select_strategy
    spatial_merge_size image_seq_length
    """.split()
)
TOWERS = ("vision_tower", "vision_model", "visual", "multi_modal_projector")


@dataclass(frozen=True)
class Tower:
    """A multimodal lineage. `text`: from what it says of its text model to a family's configuration; `granted`: what
    it takes for granted there; `rules`: what is in the files beside images and prefixes, from its own configuration."""

    architecture: str
    model_type: str
    text: Callable[[Keys, Config], Config]
    granted: Mapping[str, Any] = field(default_factory=dict)
    rules: Callable[[Config], Sequence[Rule]] = lambda text: ()

    def plain(self, config: Mapping[str, Any]) -> tuple[Config, str]:
        """The configuration of the text model, and what stands before its keys in messages.

        Raises:
            ConfigError: a key of the outer configuration is not understood.
        """
        said, inside = self._said(config)
        return self.text(Keys(said, inside), said), inside

    def into(self, config: Mapping[str, Any]) -> list[Rule]:
        """Towers are left, and prefixes that have changed over the years become the one in memory."""
        found: list[Rule] = [Drop(f"{before}{tower}.*") for tower in TOWERS for before in ("", "model.")]
        prefixes = {
            "language_model.model.": "model.",
            "model.language_model.": "model.",
            "language_model.lm_head.": "lm_head.",
        }
        found += [Adopt(disk, memory) for disk, memory in prefixes.items()]
        return [*found, *self.rules(self._said(config)[0])]

    def _said(self, config: Mapping[str, Any]) -> tuple[Config, str]:
        """What is said of the text, in an object of its own or (older files) beside the rest."""
        keys = Keys(config)
        if config.get("text_config") is None:
            return {**self.granted, **{key: value for key, value in config.items() if key not in IMAGES}}, ""
        text = keys.part("text_config")
        keys.ignore(*IMAGES, "tie_word_embeddings")
        Keys(without(config, *keys.taken)).check()
        # What the outer says of ids, types and ties holds where the inner says nothing.
        outer = without(config, "architectures", "model_type", *keys.taken - {"tie_word_embeddings"})
        return {**self.granted, **outer, **text.config}, "text_config."


def named(model_type: str, *noise: str) -> Callable[[Keys, Config], Config]:
    """A text model that says itself what it is, or, where it does not, is a `model_type`."""

    def text(keys: Keys, said: Config) -> Config:
        kind = said.get("model_type")
        return {**without(said, *noise), "model_type": model_type if kind is None else kind}

    return text


def turned(model_type: str) -> Callable[[Keys, Config], Config]:
    """Positions count in time, height and width at once, which are one and the same where all is text."""

    def text(keys: Keys, said: Config) -> Config:
        found = dict(said)
        for name in ("rope_scaling", "rope_parameters"):
            if isinstance(said.get(name), Mapping):
                part = without(said[name], "mrope_section", "mrope_interleaved")
                found[name] = {k: "default" if (k, v) in MROPE else v for k, v in part.items()}
        return {**found, "model_type": model_type}

    return text


MROPE = (("type", "mrope"), ("rope_type", "mrope"))


def mllama(keys: Keys, said: Config) -> Config:
    """Without images the layers that look at them are passed over; the others are a Llama."""
    layers = keys.size("num_hidden_layers")
    left = layers - len(crossing(keys, layers))
    return {**without(said, "cross_attention_layers", "dropout"), "num_hidden_layers": left, "model_type": "llama"}


def mllama_rules(said: Config) -> Sequence[Rule]:
    keys = Keys(said)
    layers = keys.size("num_hidden_layers")
    crossed = crossing(keys, layers)
    kept = [i for i in range(layers) if i not in crossed]
    return [
        *(Drop(f"model.layers.{i}.*") for i in crossed),
        *(Adopt(f"model.layers.{i}.", f"model.layers.{n}.") for n, i in enumerate(kept) if n != i),
        Top("model.embed_tokens.weight", keys.size("vocab_size")),  # further rows stand for images
    ]


def crossing(keys: Keys, layers: int) -> list[int]:
    found = keys.numbers("cross_attention_layers", [3, 8, 13, 18, 23, 28, 33, 38])
    if len(set(found)) != len(found) or any(i not in range(layers) for i in found) or len(found) >= layers:
        raise keys.wrong("cross_attention_layers", list(found), f"some of the {layers} layers, each once")
    return [int(i) for i in found]


def without(said: Mapping[str, Any], *names: str) -> Config:
    return {key: value for key, value in said.items() if key not in names}


GEMMA3 = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
}
QWEN2_VL = {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 32_768, "max_window_layers": 80}
QWEN3_VL = {"rope_theta": 5e5, "max_position_embeddings": 128_000}
LLAMA4 = {"rope_theta": 5e5, "hidden_size": 5120, "num_hidden_layers": 48, "num_attention_heads": 40}
MLLAMA = {"rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_position_embeddings": 131_072, "num_key_value_heads": 8}

TABLE = {
    tower.architecture: tower
    for tower in (
        Tower("Gemma3ForConditionalGeneration", "gemma3", named("gemma3_text"), GEMMA3),
        Tower("Mistral3ForConditionalGeneration", "mistral3", named("mistral")),
        Tower("Qwen2VLForConditionalGeneration", "qwen2_vl", turned("qwen2"), QWEN2_VL),
        Tower("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", turned("qwen2"), QWEN2_VL),
        Tower("Qwen3VLForConditionalGeneration", "qwen3_vl", turned("qwen3"), QWEN3_VL),
        Tower("Llama4ForConditionalGeneration", "llama4", named("llama4_text"), LLAMA4),
        Tower("MllamaForConditionalGeneration", "mllama", mllama, MLLAMA, mllama_rules),
    )
}
