"""GLM-4 9B: half of each head turns, neighbour with neighbour; gate and up in one tensor. GLM-4 0414: four norms."""

from __future__ import annotations

from collections.abc import Sequence

from lathe.families.keys import Keys
from lathe.families.llama import attention, depth, gated, model, norm
from lathe.families.phi import gate_up
from lathe.model.spec import Layer, Order, Spec
from lathe.weights.rules import Rename, Rule

EPS = 0.00000015625


def glm(keys: Keys) -> Spec:
    return _glm(keys, "pre")


def glm4(keys: Keys) -> Spec:
    return _glm(keys, "sandwich")


def _glm(keys: Keys, order: Order) -> Spec:
    bias = keys.flag("attention_bias", True)
    mixer = attention(keys, head_dim=128, partial=0.5, interleaved=True, qkv_bias=bias, out_bias=False)
    return model(keys, [Layer(mixer, gated(keys), norm(keys, EPS), order)] * depth(keys), norm(keys, EPS))


def glm_rules(spec: Spec) -> Sequence[Rule]:
    return [gate_up(spec)]


def glm4_rules(spec: Spec) -> Sequence[Rule]:
    names = {  # in an order in which no name is taken twice
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "post_self_attn_layernorm": "post_attention_layernorm",
        "post_mlp_layernorm": "post_feedforward_layernorm",
    }
    layer = "model.layers.{i}."
    return [gate_up(spec), *(Rename(f"{layer}{a}.weight", f"{layer}{b}.weight") for a, b in names.items())]
