"""Mixtures of experts in GGUF: what their keys mean in Hugging Face's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lathe.families.ggml.header import SCORES, Config, Facts, Header, chosen, named, sizes, windows
from lathe.families.ggml.llamas import dense
from lathe.families.ggml.scaling import rope, scaling
from lathe.model.spec import Experts, Router, Spec


def qwen3moe(header: Header) -> Config:
    keys = header.keys
    found = dense(header, "Qwen3MoeForCausalLM")
    window, local = windows(header, found["num_hidden_layers"])
    if window and not all(local):
        raise keys.wrong("attention.sliding_window_pattern", local, "the same for all layers")
    return {
        **found,
        **({"use_sliding_window": True, "sliding_window": window} if window else {}),
        **chosen(header),
        "num_experts": keys.size("expert_count"),
        "moe_intermediate_size": keys.size("expert_feed_forward_length"),
        "norm_topk_prob": True,
    }


def qwen2moe(header: Header) -> Config:
    keys = header.keys
    return {
        **dense(header, "Qwen2MoeForCausalLM"),
        **chosen(header, norm=False),
        "num_experts": keys.size("expert_count"),
        "moe_intermediate_size": keys.size("expert_feed_forward_length"),
        "shared_expert_intermediate_size": keys.size("expert_shared_feed_forward_length"),
        "norm_topk_prob": False,
        "qkv_bias": "blk.0.attn_q.bias" in header.shapes,
    }


def qwen2moe_tells(config: Mapping[str, Any], spec: Spec) -> Facts:
    shared = next((layer.mlp.shared for layer in spec.layers if isinstance(layer.mlp, Experts)), None)
    return {"expert_shared_feed_forward_length": shared.width if shared else None}


def olmoe(header: Header) -> Config:
    keys = header.keys
    found = dense(header, "OlmoeForCausalLM")
    keys.expect("expert_feed_forward_length", found["intermediate_size"])
    return {**found, **chosen(header, norm=False), "num_experts": keys.size("expert_count"), "norm_topk_prob": False}


def gpt_oss(header: Header) -> Config:
    """The bounds of YaRN's ramp are not whole channels, whatever llama.cpp makes of them."""
    keys = header.keys
    found = dense(header, "GptOssForCausalLM")
    window, local = windows(header, found["num_hidden_layers"], every=2)
    if found["rope_scaling"]:
        found["rope_scaling"] |= {"truncate": False}
    return {
        **found,
        **chosen(header),
        "num_local_experts": keys.size("expert_count"),
        "intermediate_size": keys.size("expert_feed_forward_length"),
        "sliding_window": window,
        "layer_types": named(local),
    }


def deepseek2(header: Header) -> Config:
    """DeepSeek V2, whose scores are a softmax, and V3, whose are sigmoids. Attention's keys count the latent as the one
    key of all heads, except in the oldest files."""
    keys = header.keys
    score = keys.take("expert_gating_func", SCORES["softmax"])
    if score not in SCORES.values():
        raise keys.wrong("expert_gating_func", score, " or ".join(map(str, SCORES.values())))
    rank, turned = keys.size("attention.kv_lora_rank"), keys.size("rope.dimension_count")
    key, value = keys.size("attention.key_length"), keys.size("attention.value_length")
    key, value = keys.size("attention.key_length_mla", key), keys.size("attention.value_length_mla", value)
    if key <= turned:
        raise keys.wrong("attention.key_length", key, f"more than the {turned} channels that turn")
    keys.ignore("attention.head_count_kv")
    scaled = rope(header, turned)
    stretch = keys.real("rope.scaling.yarn_log_multiplier", 0.0) * 10
    if scaled["rope_scaling"] and stretch:
        scaled["rope_scaling"] |= {"mscale": stretch, "mscale_all_dim": stretch}
    third = score == SCORES["sigmoid"]
    found = sizes(header, "DeepseekV3ForCausalLM" if third else "DeepseekV2ForCausalLM", head_dim=False)
    groups = keys.size("expert_group_count", 1)
    return {
        **found,
        **scaled,
        **({} if third else {"topk_method": "group_limited_greedy" if groups > 1 else "greedy"}),
        "num_experts_per_tok": keys.size("expert_used_count"),
        "num_key_value_heads": found["num_attention_heads"],
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "q_lora_rank": keys.size_or_none("attention.q_lora_rank"),
        "kv_lora_rank": rank,
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": key - turned,
        "v_head_dim": value,
        "n_routed_experts": keys.size("expert_count"),
        "n_shared_experts": keys.size("expert_shared_count"),
        "moe_intermediate_size": keys.size("expert_feed_forward_length"),
        "n_group": groups,
        "topk_group": keys.size("expert_group_used_count", 1),
        "first_k_dense_replace": keys.size("leading_dense_block_count", 0, least=0),
        "routed_scaling_factor": keys.real("expert_weights_scale", 1.0),
        "norm_topk_prob": keys.flag("expert_weights_norm", False),
    }


def deepseek2_tells(config: Mapping[str, Any], spec: Spec) -> Facts:
    mixtures = [layer.mlp for layer in spec.layers if isinstance(layer.mlp, Experts)]
    # YaRN's correction is in the scale of the scores alone, not in what turns.
    found: Facts = {
        "leading_dense_block_count": len(spec.layers) - len(mixtures),
        "rope.scaling.yarn_attn_factor": None,
    }
    stretch = scaling(config).get("mscale_all_dim")
    if stretch:
        found["rope.scaling.yarn_log_multiplier"] = stretch / 10
    if mixtures and isinstance(mixtures[0].router, Router):
        router, each, shared = mixtures[0].router, mixtures[0].each, mixtures[0].shared
        found |= {
            "expert_shared_count": shared.width // each.width if shared else 0,
            "expert_group_count": router.groups,
            "expert_group_used_count": router.top_groups,
        }
    return found
