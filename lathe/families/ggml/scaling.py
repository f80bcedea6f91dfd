"""How positions turn, from a GGUF file's keys and the small tensors of divisors, in Hugging Face's words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lathe.families.ggml.header import FREQUENCIES, LONG, SHORT, Config, Header, shortest
from lathe.model.spec import Llama3

LLAMA3 = 1.0, 4.0  # the ends of the ramp in Llama 3's scaling, in all models that have it but Llama 4
LLAMA3_CONTEXT = 8192  # and, where the file does not say it, the length of the first training


def turning(header: Header, channels: int) -> tuple[int, float]:
    """How many of a head's channels turn, and what share of them that is."""
    turned = header.keys.size("rope.dimension_count", channels)
    if turned > channels:
        raise header.keys.wrong("rope.dimension_count", turned, f"at most {channels}, the channels of a head")
    share = turned / channels
    # Whoever multiplies them again rounds down.
    return turned, share if int(channels * share) == turned else math.nextafter(share, 1.0)


def scaling(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object in a `config.json` that says how positions are stretched, in either dialect; an empty one for none."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def rope(header: Header, channels: int, base: float = 10_000.0, ramp: tuple[float, float] = LLAMA3) -> Config:
    """`rope_theta` and `rope_scaling`. channels: of a head, those that turn; ramp: its ends in Llama 3's scaling."""
    base = header.keys.real("rope.freq_base", base)
    if base <= 0:
        raise header.keys.wrong("rope.freq_base", base, "above 0")
    return {"rope_theta": base, "rope_scaling": _scaling(header, channels, base, ramp)}


def _scaling(header: Header, channels: int, base: float, ramp: tuple[float, float]) -> Config | None:
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
        return _divided(header.factors(FREQUENCIES, channels), base, context, trained, ramp)
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
        kept = min(max((turns - scaling.low) / max(scaling.high - scaling.low, 1e-6), 0.0), 1.0)
        return 1 / ((1 - kept) / scaling.factor + kept)

    return tuple(map(divisor, range(pairs)))


def _divided(factors: Sequence[float], base: float, context: int, original: int, ramp: tuple[float, float]) -> Config:
    """Llama 3's scaling, where that is what the divisors come from; the divisors themselves where it is not."""
    scaling = Llama3(shortest(max(factors)), *ramp, original)
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
    usual = long_attention(context / original, original)
    found = {
        "rope_type": "longrope",
        "short_factor": list(short),
        "long_factor": list(long),
        "original_max_position_embeddings": original,
    }
    # transformers 4 takes only what it needs here.
    return found if math.isclose(attention, usual, rel_tol=1e-6) else found | {"attention_factor": attention}


def long_attention(factor: float, original: int) -> float:
    """What LongRoPE multiplies cosines and sines by where nothing else is said, for a context `factor` times longer."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
