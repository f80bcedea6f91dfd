"""OLMo 2: norms after the mixer and the MLP instead of before, queries and keys normed over the whole row."""

from __future__ import annotations

from lathe.families.keys import Keys
from lathe.families.llama import attention, depth, gated, model, norm
from lathe.model.spec import Layer, QKNorm, Spec


def olmo2(keys: Keys) -> Spec:
    mixer = attention(keys, qk_norm=QKNorm(norm(keys, 1e-5), over="row"))
    layer = Layer(mixer, gated(keys), norm(keys, 1e-5), order="post")
    return model(keys, [layer] * depth(keys), norm(keys, 1e-5))
