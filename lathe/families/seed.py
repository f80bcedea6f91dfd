"""Seed-OSS: Llama with biases on queries, keys and values, and, by a switch of its own, on the output."""

from __future__ import annotations

from lathe.families.keys import Keys
from lathe.families.llama import attention, depth, gated, model, norm
from lathe.model.spec import Layer, Spec


def seed_oss(keys: Keys) -> Spec:
    into, out = keys.flag("attention_bias", True), keys.flag("attention_out_bias", False)
    layer = Layer(attention(keys, head_dim=128, qkv_bias=into, out_bias=out), gated(keys), norm(keys))
    return model(keys, [layer] * depth(keys), norm(keys))
