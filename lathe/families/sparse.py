"""Mixtures of experts in Llama-shaped layers: Qwen 2 MoE, OLMoE, Granite MoE, MiniMax-M2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lathe.families.keys import Keys
from lathe.families.llama import attention, depth, gated, granite, mixtral_rules, model, norm, windows
from lathe.families.qwen import expert_rules
from lathe.model.spec import Experts, Gated, Layer, QKNorm, Router, Spec
from lathe.weights.rules import Rename, Rule, Split

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


def granite_moe(keys: Keys) -> Spec:
    """Granite with experts, which have no biases."""
    keys.ignore("router_aux_loss_coef", "output_router_logits")
    dense = granite(keys)
    count = keys.size("num_local_experts", 8)
    router = Router(count, keys.size("num_experts_per_tok", 2, most=count))
    mixed = Experts(gated(keys), router)
    return replace(dense, layers=tuple(replace(layer, mlp=mixed) for layer in dense.layers))


def granite_moe_rules(spec: Spec) -> Sequence[Rule]:
    """Experts are stacked, each one's gate over its up."""
    disk, memory = "model.layers.{i}.block_sparse_moe.", "model.layers.{i}.mlp."
    width = next(layer.mlp.each.width for layer in spec.layers if isinstance(layer.mlp, Experts))
    parts = tuple(f"{memory}experts.{name}.weight" for name in ("gate_proj", "up_proj"))
    return [
        Rename(disk + "router.layer.weight", memory + "gate.weight"),
        Split(disk + "input_linear.weight", parts, (width, width), 1),
        Rename(disk + "output_linear.weight", memory + "experts.down_proj.weight"),
    ]


def minimax_m2(keys: Keys) -> Spec:
    """Queries and keys normed over the whole row, a part of each head turning, experts chosen by corrected sigmoids."""
    keys.ignore("router_aux_loss_coef", "output_router_logits", "router_jitter_noise", "shared_moe_mode")
    # What predicts further ahead is dropped; factors of the residual stream are those of another model's layers.
    keys.ignore("num_mtp_modules", "mtp_transformer_layers", "use_mtp", "mlp_intermediate_size")
    for factor in ("layernorm_full_attention_beta", "layernorm_linear_attention_beta", "layernorm_mlp_beta"):
        keys.expect(factor, 1.0)
    for name in ("use_qk_norm", "use_routing_bias"):
        keys.expect(name, True)
    keys.expect("qk_norm_type", "per_layer")
    keys.expect("scoring_func", "sigmoid")
    keys.expect("shared_intermediate_size", 0)
    keys.expect("sliding_window", None)
    if set(keys.numbers("attn_type_list", [])) - {1}:
        raise keys.wrong("attn_type_list", keys.config["attn_type_list"], "1, softmax attention, for every layer")
    channels = keys.size("head_dim", 128)
    partial = keys.size("rotary_dim", channels, most=channels) / channels
    normed = QKNorm(norm(keys), over="row")
    mixer = attention(keys, head_dim=channels, base=5e6, partial=partial, qk_norm=normed)
    count = keys.size("num_local_experts", 256)
    chosen = keys.size("num_experts_per_tok", 8, most=count)
    mixed = Experts(gated(keys), Router(count, chosen, score="sigmoid", correction=True))
    return model(keys, [Layer(mixer, mixed, norm(keys))] * depth(keys), norm(keys))


def minimax_m2_rules(spec: Spec) -> Sequence[Rule]:
    correction = "e_score_correction_bias"
    return [
        Rename(f"model.layers.{{i}}.block_sparse_moe.{correction}", f"model.layers.{{i}}.mlp.gate.{correction}"),
        *mixtral_rules(spec),
    ]
