"""Nemotron and Minitron: LayerNorm stored minus one, a plain MLP of squared ReLU, positions on half of each head."""

from __future__ import annotations

from lathe.families.keys import Keys
from lathe.families.llama import attention, depth, model
from lathe.model.spec import Layer, LayerNorm, Plain, Spec


def nemotron(keys: Keys) -> Spec:
    norm = LayerNorm(keys.real("norm_eps", 1e-5), offset=1.0)
    mlp = Plain(keys.size("intermediate_size"), keys.activation("hidden_act", "relu2"), keys.flag("mlp_bias", False))
    return model(keys, [Layer(attention(keys, partial=0.5), mlp, norm)] * depth(keys), norm)
