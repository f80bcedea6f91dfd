"""Exaone 4: norms after the mixer and the MLP, and over each head; beside local layers, the global ones do not turn."""

from __future__ import annotations

from dataclasses import replace

from lathe.families.keys import Keys
from lathe.families.llama import attention, depth, gated, model, norm, windows
from lathe.model.spec import Layer, QKNorm, Spec


def exaone4(keys: Keys) -> Spec:
    window = keys.size_or_none("sliding_window", 4096)
    seen = windows(keys, _local(keys, depth(keys)) if window else [False] * depth(keys), window)
    keys.ignore("sliding_window_pattern")
    mixer = attention(keys, qk_norm=QKNorm(norm(keys, 1e-5)))
    mixers = [replace(mixer, window=w, rope=mixer.rope if w or window is None else None) for w in seen]
    layers = [Layer(part, gated(keys), norm(keys, 1e-5), "post") for part in mixers]
    return model(keys, layers, norm(keys, 1e-5))


def _local(keys: Keys, layers: int) -> list[bool]:
    """Which layers have a window: all but each `n`th, or as a word of L (local) and G (global) says, over and over."""
    pattern = keys.take("sliding_window_pattern", 4)
    if isinstance(pattern, str) and pattern and set(pattern) <= set("LG"):
        return [pattern[i % len(pattern)] == "L" for i in range(layers)]
    if type(pattern) is not int or pattern < 1:
        raise keys.wrong("sliding_window_pattern", pattern, 'a whole number of at least 1, or a word as "LLLG"')
    return [(i + 1) % pattern != 0 for i in range(layers)]
