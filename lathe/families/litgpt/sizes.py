"""Sizes, positions and windows, which LitGPT says in the same keys of every model, in Hugging Face's words."""

from __future__ import annotations

from typing import Any

from lathe import families
from lathe.families.keys import Keys

Config = dict[str, Any]

MOST_LAYERS = 10_000
GELU = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}


def sizes(keys: Keys, architecture: str) -> Config:
    heads, width, vocab = keys.size("n_head"), keys.size("n_embd"), keys.size("vocab_size")
    head = keys.size("head_size", width // heads)
    return {
        "architectures": [architecture],
        "model_type": families.find({"architectures": [architecture]}).model_type,
        "vocab_size": keys.size("padded_vocab_size", vocab + -vocab % keys.size("padding_multiple")),
        "hidden_size": width,
        "intermediate_size": keys.size("intermediate_size", 4 * width),
        "num_hidden_layers": depth(keys),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("n_query_groups", heads),
        "head_dim": head,
        "max_position_embeddings": keys.size("block_size"),
        "tie_word_embeddings": False,
        # Where some configurations name no token for padding, transformers takes one, be there so many or not.
        "pad_token_id": None,
    }


def depth(keys: Keys) -> int:
    """How many, below what would only fill the memory with lists."""
    layers = keys.size("n_layer")
    if layers > MOST_LAYERS:
        raise keys.wrong("n_layer", layers, f"at most {MOST_LAYERS}")
    return layers


def turning(keys: Keys) -> Config:
    """`rope_theta` and `rope_scaling`; YaRN as its paper has it, not with LitGPT's ramp, which runs the wrong way."""
    condense, part = keys.real("rope_condense_ratio", 1.0), keys.part("rope_adjustments")
    scaling: Config | None = None
    if part.config.keys() & {"low_freq_factor", "high_freq_factor"}:
        scaling = {
            "rope_type": "llama3",
            **{n: part.real(n) for n in ("factor", "low_freq_factor", "high_freq_factor")},
        }
    elif part.config.keys() & {"beta_fast", "beta_slow"}:
        scaling = {"rope_type": "yarn", **{n: part.real(n) for n in ("factor", "beta_fast", "beta_slow")}}
    elif part.config or condense != 1:
        scaling = {"rope_type": "linear", "factor": part.real("factor", 1.0) * condense}
    if scaling and scaling["rope_type"] != "linear":
        scaling["original_max_position_embeddings"] = part.size("original_max_seq_len")
        if condense != 1:
            raise keys.wrong("rope_condense_ratio", condense, "1 beside rope_adjustments of this kind")
    return {"rope_theta": keys.real("rope_base"), "rope_scaling": scaling}


def windows(keys: Keys) -> tuple[int | None, list[bool]]:
    """How many tokens a window spans, and which layers look through it."""
    size = keys.size_or_none("sliding_window_size")
    return size, [size is not None and mark == 1 for mark in marks(keys, "sliding_window_indices", depth(keys))]


def marks(keys: Keys, name: str, layers: int) -> tuple[float, ...]:
    """A 0 or 1 for each layer; more than there are layers may be given, none means all 1."""
    found = keys.numbers(name, [1] * layers)
    if len(found) < layers or not set(found) <= {0, 1}:
        raise keys.wrong(name, list(found), f"a list of {layers}, each 0 or 1")
    return found[:layers]


def one_window(keys: Keys) -> int | None:
    """The window where all layers must have the same."""
    size, slides = windows(keys)
    if size is not None and not all(slides):
        raise keys.wrong("sliding_window_indices", slides, "1 for every layer, in a model of this shape")
    return size


def kinds(slides: list[bool]) -> list[str]:
    return ["sliding_attention" if slide else "full_attention" for slide in slides]


def gelu(keys: Keys) -> str:
    approximate = keys.take("gelu_approximate", "none")
    if not isinstance(approximate, str) or approximate not in GELU:
        raise keys.wrong("gelu_approximate", approximate, " or ".join(GELU))
    return GELU[approximate]


def must(keys: Keys, **values: Any) -> None:
    """Keys without which a shape is not the one it looks like."""
    for name, value in values.items():
        found = keys.take(name, None)
        if found != value:
            raise keys.wrong(name, found, f"{value!r} beside the rest of this configuration")


def named(keys: Keys) -> str:
    """The model's name, into which LitGPT looks to decide on its norms."""
    hub = keys.part("hf_config")
    hub.ignore("org", "name")
    return str(keys.take("name", "") or hub.config.get("name", ""))
