"""A `config.json` says how positions turn queries and keys, in either dialect; this becomes a Rope. Knows no family."""

from __future__ import annotations

import math

from lathe.errors import ConfigError
from lathe.families.keys import Keys
from lathe.model.spec import Dynamic, Linear, Llama3, LongRope, Rope, Scaling, Yarn


def rope(
    keys: Keys,
    channels: int,
    context: int,
    *,
    base: float = 10_000.0,
    partial: float = 1.0,
    interleaved: bool = False,
) -> Rope:
    """One rotation for all layers. `base`, `partial`: the family's defaults; `channels`: of one head."""
    new, old = keys.part("rope_parameters"), keys.part("rope_scaling")
    base = new.real("rope_theta", keys.real("rope_theta", base, above=1), above=1)
    partial = new.real("partial_rotary_factor", keys.real("partial_rotary_factor", partial))
    if not 0 < partial <= 1:
        raise keys.wrong("partial_rotary_factor", partial, "above 0 and at most 1")
    return turned(keys, new if new.config else old, int(channels * partial), context, base, interleaved)


def turned(keys: Keys, part: Keys, channels: int, context: int, base: float, interleaved: bool = False) -> Rope:
    """A Rope from the object `part` of `keys` that holds its scaling."""
    if channels < 2 or channels % 2:
        raise ConfigError(
            f"{keys.file} makes {channels} channels of each head turn with the position.",
            "It should be an even number of at least 2.",
            'Check "head_dim" and "partial_rotary_factor".',
        )
    # Phi-3 keeps it beside the object; where both are given, the outer one counts, as in transformers.
    outer = keys.size_or_none("original_max_position_embeddings")
    inner = part.size_or_none("original_max_position_embeddings")
    return Rope(base, channels, scaling(part, channels, context, outer or inner or context), interleaved)


def scaling(part: Keys, channels: int, context: int, original: int) -> Scaling | None:
    """The scaling that `rope_scaling` or `rope_parameters` describes, or None.

    channels: how many of a head's turn; context: the longest sequence after scaling; original: the longest of the
    first training.
    """
    part.ignore("rope_theta", "partial_rotary_factor")
    kind = part.take("rope_type", part.take("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return Linear(part.real("factor", above=0))
    if kind == "dynamic":
        return Dynamic(part.real("factor", above=0), context)
    if kind == "llama3":
        low = part.real("low_freq_factor", above=0)
        high = part.real("high_freq_factor", above=0)
        if high < low:
            raise part.wrong("high_freq_factor", high, f"at least {low}, the low_freq_factor")
        return Llama3(part.real("factor", above=0), low, high, original)
    factor = part.real("factor", context / original, above=0)
    if kind == "yarn":
        attention = part.real("attention_factor", _yarn_attention(factor, part))
        fast, slow = part.real("beta_fast", 32.0, above=0), part.real("beta_slow", 1.0, above=0)
        return Yarn(factor, original, fast, slow, attention, part.flag("truncate", True))
    if kind in ("longrope", "su"):  # "su" is what the first Phi-3 files called it
        grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
        attention = part.real("attention_factor", grown)
        short, long = (part.numbers(name, count=channels // 2) for name in ("short_factor", "long_factor"))
        return LongRope(short, long, original, attention)
    word = "rope_type" if "rope_type" in part.config else "type"
    raise part.wrong(word, kind, "default, linear, dynamic, llama3, yarn or longrope")


def mscale(factor: float, weight: float = 1.0) -> float:
    """YaRN's correction of the scores' temperature for a context `factor` times longer. arXiv:2309.00071, 3.4"""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_attention(factor: float, part: Keys) -> float:
    weight, weight_all = part.real("mscale", 0.0), part.real("mscale_all_dim", 0.0)
    return mscale(factor, weight) / mscale(factor, weight_all) if weight and weight_all else mscale(factor)
