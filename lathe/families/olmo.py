"""OLMo 1: LayerNorm without weights, projections clipped. OLMo 2: norms after the mixer and the MLP instead of before,
queries and keys normed over the whole row."""

from __future__ import annotations

from lathe.families.keys import Keys
from lathe.families.llama import attention, depth, gated, model, norm
from lathe.model.spec import Layer, LayerNorm, QKNorm, Spec


def olmo(keys: Keys) -> Spec:
    norm = LayerNorm(1e-5, affine=False)
    mixer = attention(keys, clip=keys.real_or_none("clip_qkv", above=0))
    return model(keys, [Layer(mixer, gated(keys), norm)] * depth(keys), norm)


def olmo2(keys: Keys) -> Spec:
    mixer = attention(keys, qk_norm=QKNorm(norm(keys, 1e-5), over="row"))
    layer = Layer(mixer, gated(keys), norm(keys, 1e-5), order="post")
    return model(keys, [layer] * depth(keys), norm(keys, 1e-5))
