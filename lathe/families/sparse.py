"""Mixtures of experts in Llama-shaped layers: Qwen 2 MoE, OLMoE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lathe.families.keys import Keys
from lathe.families.llama import attention, depth, gated, model, norm, windows
from lathe.families.qwen import expert_rules
from lathe.model.spec import Experts, Gated, Layer, QKNorm, Router, Spec
from lathe.weights.rules import Rename, Rule

GATED = ("gate_proj", "up_proj", "down_proj")


def qwen2_moe(keys: Keys) -> Spec:
    """A shared expert of its own width, behind a gate."""
    keys.ignore("router_aux_loss_coef", "output_router_logits")
    layers, slides = depth(keys), keys.flag("use_sliding_window", False)
    first = keys.size("max_window_layers", 28, least=0)
    window = keys.size("sliding_window", 4096, least=0) or None  # transformers 5 writes none as 0
    seen = windows(keys, [slides and i % 2 == 0 and i < first for i in range(layers)], window)
    part = attention(keys, qkv_bias=keys.flag("qkv_bias", True), out_bias=False)
    count = keys.size("num_experts", 60)
    dense = gated(keys)
    mixed = Experts(
        each=Gated(keys.size("moe_intermediate_size", 1408), dense.act),
        router=Router(
            count=count,
            chosen=keys.size("num_experts_per_tok", 4, most=count),
            renormalise=keys.flag("norm_topk_prob", False),
        ),
        shared=Gated(keys.size("shared_expert_intermediate_size", 5632), dense.act),
        shared_gate=True,
    )
    plain, step = keys.numbers("mlp_only_layers", []), keys.size("decoder_sparse_step", 1)
    mlps = [dense if i in plain or (i + 1) % step else mixed for i in range(layers)]
    made = [Layer(replace(part, window=w), mlp, norm(keys)) for w, mlp in zip(seen, mlps, strict=True)]
    return model(keys, made, norm(keys))


def qwen2_moe_rules(spec: Spec) -> Sequence[Rule]:
    return [*shared_rules("model.layers.{i}.mlp.shared_expert."), *expert_rules(spec)]


def shared_rules(disk: str) -> list[Rule]:
    """What files call the MLP that all tokens visit."""
    return [Rename(f"{disk}{w}.weight", f"model.layers.{{i}}.mlp.shared_experts.{w}.weight") for w in GATED]


def olmoe(keys: Keys) -> Spec:
    keys.ignore("router_aux_loss_coef", "output_router_logits")
    clip = keys.real_or_none("clip_qkv", above=0)
    mixer = attention(keys, qk_norm=QKNorm(norm(keys, 1e-5), over="row"), clip=clip)
    count = keys.size("num_experts", 64)
    router = Router(
        count=count,
        chosen=keys.size("num_experts_per_tok", 8, most=count),
        renormalise=keys.flag("norm_topk_prob", False),
    )
    keys.expect("mlp_bias", False)
    layer = Layer(mixer, Experts(gated(keys), router), norm(keys, 1e-5))
    return model(keys, [layer] * depth(keys), norm(keys, 1e-5))
