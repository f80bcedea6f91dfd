"""StableLM: LayerNorm, a gated MLP, positions on a quarter of each head; where heads are normed, each by its own."""

from __future__ import annotations

from collections.abc import Sequence

from lathe.families.keys import Keys
from lathe.families.llama import attention, depth, gated, model
from lathe.model.spec import Attention, Layer, LayerNorm, Order, QKNorm, Spec
from lathe.weights.rules import Rule, Stack


def stablelm(keys: Keys) -> Spec:
    norm = LayerNorm(keys.real("layer_norm_eps", 1e-5))
    own = QKNorm(LayerNorm(norm.eps, bias=False), over="own head") if keys.flag("qk_layernorm", False) else None
    bias = keys.flag("use_qkv_bias", False)
    mixer = attention(keys, partial=0.25, qkv_bias=bias, out_bias=False, qk_norm=own)
    order: Order = "shared" if keys.flag("use_parallel_residual", False) else "pre"
    return model(keys, [Layer(mixer, gated(keys), norm, order)] * depth(keys), norm)


def stablelm_rules(spec: Spec) -> Sequence[Rule]:
    """One tensor per head on disk."""
    mixer, layer = spec.layers[0].mixer, "model.layers.{i}.self_attn."
    assert isinstance(mixer, Attention)
    return [
        Stack(f"{layer}{part}_layernorm.norms.{{e}}.weight", f"{layer}{part}_norm.weight", heads)
        for part, heads in (("q", mixer.heads), ("k", mixer.kv_heads))
    ]
