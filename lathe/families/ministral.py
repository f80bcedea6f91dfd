"""Ministral: Mistral with a window in some layers. Ministral 3: queries that far into the text count for more."""

from __future__ import annotations

from dataclasses import replace

from lathe.families import positions
from lathe.families.keys import Keys
from lathe.families.llama import attention, context, depth, gated, model, norm, windows
from lathe.model.spec import Layer, Rope, Spec, Temperature

# What a configuration that says nothing of positions means by it.
STRETCH = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def ministral(keys: Keys) -> Spec:
    window = keys.size_or_none("sliding_window", 4096)
    seen = windows(keys, [window is not None] * depth(keys), window)
    part = attention(keys)
    return model(keys, [Layer(replace(part, window=w), gated(keys), norm(keys)) for w in seen], norm(keys))


def ministral3(keys: Keys) -> Spec:
    part = _stretch(keys)
    strength = part.real_or_none("llama_4_scaling_beta")
    every = part.size_or_none("original_max_position_embeddings")
    heat = None if strength is None or every is None else Temperature(strength, every)
    window = keys.size_or_none("sliding_window")
    mixer = attention(keys, head_dim=128, turn=_turn, window=window, temperature=heat)
    return model(keys, [Layer(mixer, gated(keys), norm(keys, 1e-5))] * depth(keys), norm(keys, 1e-5))


def _stretch(keys: Keys) -> Keys:
    """The object that says how positions turn, and how they make queries count."""
    new, old = keys.part("rope_parameters"), keys.part("rope_scaling")
    if not new.config and not old.config and not keys.config.get("rope_theta"):
        return Keys(STRETCH)
    return new if new.config else old


def _turn(keys: Keys, channels: int) -> Rope:
    part = _stretch(keys)
    part.ignore("max_position_embeddings")  # the same as outside
    base = part.real("rope_theta", keys.real("rope_theta", 10_000.0, above=1), above=1)
    return positions.turned(keys, part, channels, context(keys), base)
