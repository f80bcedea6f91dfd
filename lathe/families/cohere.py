"""Cohere: Command R, R+, and, as Cohere 2, R7B and A: one norm for attention and MLP, neighbours turn in pairs."""

from __future__ import annotations

from dataclasses import replace

from lathe.families.keys import Keys
from lathe.families.llama import attention, depth, gated, model, windows
from lathe.model.spec import Attention, Layer, LayerNorm, QKNorm, Spec


def cohere(keys: Keys) -> Spec:
    keys.ignore("model_max_length")
    own = QKNorm(_norm(keys), over="own head") if keys.flag("use_qk_norm", False) else None
    mixer = attention(keys, base=500_000.0, interleaved=True, qk_norm=own)
    return _model(keys, [mixer] * depth(keys))


def cohere2(keys: Keys) -> Spec:
    """Three local layers, whose positions turn, to one global, which has none."""
    keys.ignore("layer_switch", "use_parallel_embedding")
    keys.expect("order_of_interleaved_layers", "local_attn_first")
    keys.expect("position_embedding_type", "rope_gptj")
    keys.expect("rotary_pct", 1.0)
    for name in ("use_embedding_sharing", "use_gated_activation", "use_parallel_block"):
        keys.expect(name, True)
    every, window = keys.size("sliding_window_pattern", 4), keys.size_or_none("sliding_window", 4096)
    seen = windows(keys, [(i + 1) % every != 0 for i in range(depth(keys))], window)
    mixer = attention(keys, interleaved=True)
    return _model(keys, [replace(mixer, window=w, rope=mixer.rope if w else None) for w in seen])


def _norm(keys: Keys) -> LayerNorm:
    return LayerNorm(keys.real("layer_norm_eps", 1e-5), bias=False)


def _model(keys: Keys, mixers: list[Attention]) -> Spec:
    layers = [Layer(mixer, gated(keys), _norm(keys), "shared") for mixer in mixers]
    return model(keys, layers, _norm(keys), tied=True, logit_scale=keys.real("logit_scale", 0.0625))
