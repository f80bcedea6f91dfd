"""What a GGUF file says of a model, read key by key, and the parts of a configuration that most lineages share.

Keys are named as in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; floats come from 32 bits.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lathe.errors import ConfigError
from lathe.families import FAMILIES
from lathe.families.keys import Keys

Config = dict[str, Any]
Facts = dict[str, Any]  # metadata, without the architecture's name before each key
SCORES = {"softmax": 1, "sigmoid": 2}  # ggml's numbers for what a router makes of its logits

# Small tensors that are settings, not weights: divisors of the rotary frequencies.
FREQUENCIES, LONG, SHORT = SETTINGS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class Header:
    """`keys`: the metadata under the architecture's own name; `shapes`: of all tensors, in torch's order."""

    keys: Keys
    metadata: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @staticmethod
    def of(arch: str, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Header:
        own = {
            name.removeprefix(arch + "."): shortest(value) if isinstance(value, float) else value
            for name, value in metadata.items()
            if name.startswith(arch + ".")
        }
        keys = Keys(own, inside=arch + ".", file="GGUF metadata", noise=())
        layers = keys.size("block_count")
        if layers > len(shapes):
            raise keys.wrong("block_count", layers, f"less than the number of tensors, {len(shapes)}")
        return Header(keys, metadata, shapes)

    def factors(self, name: str, channels: int) -> tuple[float, ...]:
        """The values of one of SETTINGS, one for each pair of the `channels` that turn."""
        values = Keys(self.metadata, file="The GGUF file").numbers(name, (), count=max(channels // 2, 1))
        return tuple(map(shortest, values))


def shortest(value: float) -> float:
    """The decimal number of fewest digits that is `value` in 32 bits: 1e-5 for 9.999999747378752e-06."""
    if not abs(value) < 3e38:
        return value
    single = struct.pack("<f", value)
    rounded = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next((number for number in rounded if struct.pack("<f", number) == single), value)


def called(architecture: str) -> Config:
    return {"architectures": [architecture], "model_type": FAMILIES[architecture].model_type}


def sizes(header: Header, architecture: str, *, head_dim: bool = True) -> Config:
    """What every model says. `head_dim`: whether all heads have the same channels, which the configuration names."""
    keys = header.keys
    keys.ignore("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")  # the first is said by the embedding
    heads, width, vocab = keys.size("attention.head_count"), keys.size("embedding_length"), "token_embd.weight"
    if not header.shapes.get(vocab):
        raise ConfigError(f'The GGUF file has no tensor "{vocab}".', "It says how many tokens the model knows.")
    found = {
        **called(architecture),
        "vocab_size": header.shapes[vocab][0],
        "hidden_size": width,
        "intermediate_size": keys.size("feed_forward_length"),
        "num_hidden_layers": keys.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("attention.head_count_kv", heads),
        "max_position_embeddings": keys.size("context_length"),
        "tie_word_embeddings": "output.weight" not in header.shapes,
        # Where some configurations name no token for padding, transformers takes one, be there so many or not.
        "pad_token_id": None,
    }
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(token, int):
            found[f"{name}_token_id"] = token
    if head_dim:
        found["head_dim"] = keys.size("attention.key_length", width // heads)
        keys.expect("attention.value_length", found["head_dim"])
    return found


def windows(header: Header, layers: int, every: int = 0, window: int = 0) -> tuple[int, list[bool]]:
    """A window's size, 0 for none, and which layers have it: those that the file's pattern names, or all but each
    `every`th, or, with `every` 0, all. window: the size where the file gives none."""
    keys = header.keys
    window = keys.size("attention.sliding_window", window, least=0)
    pattern = keys.take("attention.sliding_window_pattern", every)
    if type(pattern) is int and pattern >= 0:
        pattern = [pattern == 0 or (layer + 1) % pattern != 0 for layer in range(layers)]
    if not isinstance(pattern, list) or len(pattern) != layers:
        raise keys.wrong("attention.sliding_window_pattern", pattern, f"a whole number or a list of {layers}")
    return window, [bool(window) and bool(slides) for slides in pattern]


def window(header: Header, layers: int) -> int | None:
    """The size of a window that all layers have; None where none has one."""
    size, local = windows(header, layers)
    if size and not all(local):
        raise header.keys.wrong("attention.sliding_window_pattern", local, "the same for all layers")
    return size or None


def named(local: Sequence[bool]) -> list[str]:
    """`layer_types`: which layers see a window."""
    return ["sliding_attention" if slides else "full_attention" for slides in local]


def chosen(header: Header, norm: bool = True, score: str = "softmax") -> Config:
    """Scores are of one kind, and the weights of the chosen experts sum to 1, or, without `norm`, are what they are."""
    keys = header.keys
    keys.expect("expert_gating_func", SCORES[score])
    keys.expect("expert_weights_norm", norm)
    keys.expect("expert_weights_scale", 1.0)
    return {"num_experts_per_tok": keys.size("expert_used_count")}
