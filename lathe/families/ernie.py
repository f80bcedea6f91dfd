"""Ernie 4.5: Llama with neighbours that turn in pairs, and one switch for all biases."""

from __future__ import annotations

from dataclasses import replace

from lathe.families.keys import Keys
from lathe.families.llama import attention, depth, gated, model, norm
from lathe.model.spec import Layer, Spec


def ernie(keys: Keys) -> Spec:
    bias = keys.flag("use_bias", False)
    mixer = attention(keys, head_dim=128, base=500_000.0, interleaved=True, qkv_bias=bias, out_bias=bias)
    layer = Layer(mixer, replace(gated(keys), bias=bias), norm(keys, 1e-5))
    return model(keys, [layer] * depth(keys), norm(keys, 1e-5), tied=True)
