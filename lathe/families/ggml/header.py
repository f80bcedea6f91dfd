"""What a GGUF file says of a model, read key by key, and the parts of a configuration that most lineages share.

Keys are named as in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; floats come from 32 bits.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lathe.errors import ConfigError
from lathe.families import FAMILIES
from lathe.families.keys import Keys
from lathe.model.spec import Llama3

Config = dict[str, Any]

# Small tensors that are settings, not weights: divisors of the rotary frequencies.
FREQUENCIES, LONG, SHORT = SETTINGS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

LLAMA3 = 1.0, 4.0  # the ends of the ramp in Llama 3's scaling, in all models that have it
LLAMA3_CONTEXT = 8192  # and, where the file does not say it, the length of the first training


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


def sizes(header: Header, architecture: str, *, head_dim: bool = True) -> Config:
    """What every model says. `head_dim`: whether all heads have the same channels, which the configuration names."""
    keys = header.keys
    keys.ignore("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")  # the first is said by the embedding
    heads, width, vocab = keys.size("attention.head_count"), keys.size("embedding_length"), "token_embd.weight"
    if not header.shapes.get(vocab):
        raise ConfigError(f'The GGUF file has no tensor "{vocab}".', "It says how many tokens the model knows.")
    found = {
        "architectures": [architecture],
        "model_type": FAMILIES[architecture].model_type,
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


def dense(header: Header, architecture: str) -> Config:
    """Attention with rotary positions over whole heads, and RMSNorm: the Llama and all that is like it."""
    found = sizes(header, architecture)
    channels = header.keys.size("rope.dimension_count", found["head_dim"])
    if channels != found["head_dim"]:
        raise header.keys.wrong("rope.dimension_count", channels, f"{found['head_dim']}, all channels of a head")
    found |= {"rms_norm_eps": header.keys.real("attention.layer_norm_rms_epsilon"), **rope(header, channels)}
    # Where queries, keys and values alone have one (Qwen 2), the architecture says so.
    if {"blk.0.attn_q.bias", "blk.0.attn_output.bias"} <= header.shapes.keys():
        found["attention_bias"] = True
    if "blk.0.ffn_gate.bias" in header.shapes:
        found["mlp_bias"] = True
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


def named(local: Sequence[bool]) -> list[str]:
    """`layer_types`: which layers see a window."""
    return ["sliding_attention" if slides else "full_attention" for slides in local]


def turning(header: Header, channels: int) -> tuple[int, float]:
    """How many of a head's channels turn, and what share of them that is."""
    turned = header.keys.size("rope.dimension_count", channels)
    if turned > channels:
        raise header.keys.wrong("rope.dimension_count", turned, f"at most {channels}, the channels of a head")
    share = turned / channels
    # Whoever multiplies them again rounds down.
    return turned, share if int(channels * share) == turned else math.nextafter(share, 1.0)


def rope(header: Header, channels: int, base: float = 10_000.0) -> Config:
    """`rope_theta` and `rope_scaling`. `channels`: of a head, those that turn."""
    base = header.keys.real("rope.freq_base", base)
    if base <= 0:
        raise header.keys.wrong("rope.freq_base", base, "above 0")
    return {"rope_theta": base, "rope_scaling": _scaling(header, channels, base)}


def _scaling(header: Header, channels: int, base: float) -> Config | None:
    keys, context = header.keys, header.keys.size("context_length")
    kind = keys.take("rope.scaling.type", "linear")
    factor = keys.real("rope.scaling.factor", keys.real("rope.scale_linear", 0.0)) or 1.0
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise keys.wrong("rope.scaling.type", kind, "none, linear, yarn or longrope")
    original = keys.size("rope.scaling.original_context_length", context)
    attention = keys.real("rope.scaling.attn_factor", 1.0)
    if {LONG, SHORT} <= header.shapes.keys():
        return _long(header.factors(SHORT, channels), header.factors(LONG, channels), original, attention, context)
    if kind == "longrope":
        raise keys.wrong("rope.scaling.type", kind, f'accompanied by the tensors "{SHORT}" and "{LONG}"')
    keys.expect("rope.scaling.attn_factor", 1.0)
    plain = kind == "none" or factor == 1.0
    if FREQUENCIES in header.shapes:
        if not plain:
            raise keys.wrong("rope.scaling.factor", factor, f'1 beside the tensor "{FREQUENCIES}"')
        trained = keys.size("rope.scaling.original_context_length", LLAMA3_CONTEXT)
        return _divided(header.factors(FREQUENCIES, channels), base, context, trained)
    if plain:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    keys.expect("rope.scaling.yarn_ext_factor", 1.0)
    found = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    for name, key in (("attention_factor", "attn_factor"), ("beta_fast", "beta_fast"), ("beta_slow", "beta_slow")):
        value = keys.real_or_none("rope.scaling.yarn_" + key)
        found |= {} if value is None else {name: value}
    return found


def divisors(scaling: Llama3, base: float, pairs: int) -> tuple[float, ...]:
    """What the frequency of each pair of channels is divided by, in Llama 3's scaling."""

    def divisor(pair: int) -> float:
        turns = scaling.original / (2 * math.pi * base ** (pair / pairs))  # in the first training's context
        kept = min(max((turns - scaling.low) / (scaling.high - scaling.low), 0.0), 1.0)
        return 1 / ((1 - kept) / scaling.factor + kept)

    return tuple(map(divisor, range(pairs)))


def _divided(factors: Sequence[float], base: float, context: int, original: int) -> Config:
    """Llama 3's scaling, where that is what the divisors come from; the divisors themselves where it is not."""
    scaling = Llama3(shortest(max(factors)), *LLAMA3, original)
    expected = divisors(scaling, base, len(factors)) if scaling.factor > 0 else ()
    if expected and all(math.isclose(f, want, rel_tol=1e-3) for f, want in zip(factors, expected, strict=True)):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": original,
        }
    return _long(factors, factors, context, 1.0, context)


def _long(short: Sequence[float], long: Sequence[float], original: int, attention: float, context: int) -> Config:
    grown = context / original
    usual = math.sqrt(1 + math.log(grown) / math.log(original)) if grown > 1 and original > 1 else 1.0
    found = {
        "rope_type": "longrope",
        "short_factor": list(short),
        "long_factor": list(long),
        "original_max_position_embeddings": original,
    }
    # transformers 4 takes only what it needs here.
    return found if math.isclose(attention, usual, rel_tol=1e-6) else found | {"attention_factor": attention}
