"""Qwen 2, 2.5 and 3, dense and mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lathe.families.keys import Keys
from lathe.families.llama import attention, depth, experts, gated, model, norm, windows
from lathe.model.spec import Attention, Experts, Gated, Layer, QKNorm, Router, Spec
from lathe.weights.rules import Rule, Stack


def qwen2(keys: Keys) -> Spec:
    # Queries, keys and values have a bias whatever the file says; the output has none.
    return _dense(keys, attention(keys, qkv_bias=True, out_bias=False))


def qwen3(keys: Keys) -> Spec:
    return _dense(keys, attention(keys, head_dim=128, qk_norm=QKNorm(norm(keys))))


def _dense(keys: Keys, part: Attention) -> Spec:
    keys.expect("use_mrope", False)
    first = keys.size("max_window_layers", 28, least=0)
    window = keys.size_or_none("sliding_window", 4096)
    if not keys.flag("use_sliding_window", False):
        window = None
    seen = windows(keys, [window is not None and i >= first for i in range(depth(keys))], window)
    return model(keys, [Layer(replace(part, window=w), gated(keys), norm(keys)) for w in seen], norm(keys))


def qwen3_moe(keys: Keys) -> Spec:
    keys.ignore("router_aux_loss_coef", "output_router_logits", "max_window_layers")
    window = keys.size_or_none("sliding_window", 4096) if keys.flag("use_sliding_window", False) else None
    keys.ignore("sliding_window")
    heads = keys.size("num_attention_heads")
    mixer = attention(keys, head_dim=keys.size("hidden_size") // heads, qk_norm=QKNorm(norm(keys)), window=window)
    count = keys.size("num_experts" if "num_experts" in keys.config else "num_local_experts", 128)
    router = Router(
        count=count,
        chosen=keys.size("num_experts_per_tok", 8, most=count),
        renormalise=keys.flag("norm_topk_prob", False),
    )
    dense = gated(keys)
    mixed = Experts(Gated(keys.size("moe_intermediate_size", 768), dense.act), router)
    plain, step = keys.numbers("mlp_only_layers", []), keys.size("decoder_sparse_step", 1)
    mlps = [dense if i in plain or (i + 1) % step else mixed for i in range(depth(keys))]
    return model(keys, [Layer(mixer, mlp, norm(keys)) for mlp in mlps], norm(keys))


def expert_rules(spec: Spec) -> Sequence[Rule]:
    """One tensor per expert on disk."""
    mlp, count = "model.layers.{i}.mlp.experts.", experts(spec)
    return [
        Stack(mlp + f"{{e}}.{name}.weight", mlp + f"{name}.weight", count)
        for name in ("gate_proj", "up_proj", "down_proj")
        if count
    ]
