"""Ernie 4.5: Llama with neighbours that turn in pairs, and one switch for all biases; dense and mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lathe.families.keys import Keys
from lathe.families.llama import attention, depth, gated, model, norm
from lathe.families.qwen import expert_rules
from lathe.model.spec import Experts, Gated, Layer, Router, Spec
from lathe.weights.rules import Drop, Inverse, Rename, Rule, Stack


def ernie(keys: Keys) -> Spec:
    bias = keys.flag("use_bias", False)
    mixer = attention(keys, head_dim=128, base=500_000.0, interleaved=True, qkv_bias=bias, out_bias=bias)
    layer = Layer(mixer, replace(gated(keys), bias=bias), norm(keys, 1e-5))
    return model(keys, [layer] * depth(keys), norm(keys, 1e-5), tied=True)


def ernie_moe(keys: Keys) -> Spec:
    """Dense layers before, after and between those of experts, chosen by a softmax with a correction."""
    keys.ignore(
        "router_aux_loss_coef", "output_router_logits", "moe_norm_min", "moe_capacity", "num_nextn_predict_layers"
    )
    keys.expect("use_bias", False)
    keys.expect("moe_use_aux_free", True)
    keys.expect("moe_gate", "topk")
    layers, dense = depth(keys), gated(keys)
    count, each = keys.size("moe_num_experts", 64), keys.size("moe_intermediate_size", 1536)
    shared = keys.size("moe_num_shared_experts", 2, least=0)
    mixed = Experts(
        each=Gated(each, dense.act),
        router=Router(count, keys.size("moe_k", 6, most=count), correction=True),
        shared=Gated(each * shared, dense.act) if shared else None,
    )
    first, every = keys.size("moe_layer_start_index", 1, least=0), keys.size("moe_layer_interval", 1)
    last = keys.size("moe_layer_end_index", -1, least=-1)
    last = layers - 1 if last == -1 else last
    mlps = [mixed if first <= i <= last and (i + 1) % every == 0 else dense for i in range(layers)]
    mixer = attention(keys, base=500_000.0, interleaved=True)
    return model(keys, [Layer(mixer, mlp, norm(keys, 1e-5)) for mlp in mlps], norm(keys, 1e-5), tied=True)


def ernie_moe_rules(spec: Spec) -> Sequence[Rule]:
    gate = "model.layers.{i}.mlp.gate.e_score_correction_bias"
    return [
        Drop("model.mtp*"),  # what predicts further ahead
        # The correction is a row of a matrix with one row.
        Inverse(Stack(gate + ".{e}", "model.layers.{i}.mlp.moe_statics.e_score_correction_bias", 1)),
        Rename(gate + ".0", gate),
        *expert_rules(spec),
    ]
