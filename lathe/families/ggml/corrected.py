"""Experts chosen by scores that a learned correction is added to, after some dense layers, in GGUF: DeepSeek, GLM 4.5,
Ernie 4.5 and MiniMax-M2; what their keys mean in Hugging Face's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lathe.families.ggml.header import SCORES, Config, Facts, Header, chosen, sizes
from lathe.families.ggml.llamas import dense
from lathe.families.ggml.scaling import rope, scaling, turning
from lathe.model.spec import Experts, Router, Spec


def _routed(header: Header) -> Config:
    """How many experts there are, in what groups, how many of them are shared, and where they begin."""
    keys = header.keys
    return {
        "num_experts_per_tok": keys.size("expert_used_count"),
        "n_routed_experts": keys.size("expert_count"),
        "n_shared_experts": keys.size("expert_shared_count"),
        "moe_intermediate_size": keys.size("expert_feed_forward_length"),
        "n_group": keys.size("expert_group_count", 1),
        "topk_group": keys.size("expert_group_used_count", 1),
        "first_k_dense_replace": keys.size("leading_dense_block_count", 0, least=0),
        "routed_scaling_factor": keys.real("expert_weights_scale", 1.0),
        "norm_topk_prob": keys.flag("expert_weights_norm", False),
    }


def _routed_tells(spec: Spec) -> Facts:
    mixtures = [layer.mlp for layer in spec.layers if isinstance(layer.mlp, Experts)]
    found: Facts = {"leading_dense_block_count": len(spec.layers) - len(mixtures)}
    if mixtures and isinstance(mixtures[0].router, Router):
        router, each, shared = mixtures[0].router, mixtures[0].each, mixtures[0].shared
        found |= {
            "expert_shared_count": shared.width // each.width if shared else 0,
            "expert_group_count": router.groups,
            "expert_group_used_count": router.top_groups,
        }
    return found


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
    routed = _routed(header)
    return {
        **found,
        **scaled,
        **routed,
        **({} if third else {"topk_method": "group_limited_greedy" if routed["n_group"] > 1 else "greedy"}),
        "num_key_value_heads": found["num_attention_heads"],
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "q_lora_rank": keys.size_or_none("attention.q_lora_rank"),
        "kv_lora_rank": rank,
        "qk_rope_head_dim": turned,
        "qk_nope_head_dim": key - turned,
        "v_head_dim": value,
    }


def deepseek2_tells(config: Mapping[str, Any], spec: Spec) -> Facts:
    # YaRN's correction is in the scale of the scores alone, not in what turns.
    found: Facts = {**_routed_tells(spec), "rope.scaling.yarn_attn_factor": None}
    stretch = scaling(config).get("mscale_all_dim")
    if stretch:
        found["rope.scaling.yarn_log_multiplier"] = stretch / 10
    return found


def glm4moe(header: Header) -> Config:
    """Layers that predict further ahead count as layers in the file, and are dropped."""
    keys, shapes = header.keys, header.shapes
    keys.expect("expert_gating_func", SCORES["sigmoid"])
    ahead = keys.size("nextn_predict_layers", 0, least=0, most=1)
    found = sizes(header, "Glm4MoeForCausalLM")
    turned, share = turning(header, found["head_dim"])
    return {
        **found,
        **rope(header, turned),
        **_routed(header),
        "num_hidden_layers": found["num_hidden_layers"] - ahead,
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "partial_rotary_factor": share,
        "attention_bias": "blk.0.attn_q.bias" in shapes or "blk.0.attn_qkv.bias" in shapes,
        "use_qk_norm": "blk.0.attn_q_norm.weight" in shapes,
    }


def glm4moe_tells(config: Mapping[str, Any], spec: Spec) -> Facts:
    return _routed_tells(spec)


def ernie_moe(header: Header) -> Config:
    keys = header.keys
    keys.expect("interleave_moe_layer_step", 1)
    keys.ignore("expert_shared_feed_forward_length")  # which llama.cpp's converter takes from what it is not
    return {
        **dense(header, "Ernie4_5_MoeForCausalLM"),
        "moe_k": chosen(header)["num_experts_per_tok"],
        "moe_num_experts": keys.size("expert_count"),
        "moe_num_shared_experts": keys.size("expert_shared_count", 0, least=0),
        "moe_intermediate_size": keys.size("expert_feed_forward_length"),
        "moe_layer_start_index": keys.size("leading_dense_block_count", 0, least=0),
    }


def ernie_moe_tells(config: Mapping[str, Any], spec: Spec) -> Facts:
    mixed = next((layer.mlp for layer in spec.layers if isinstance(layer.mlp, Experts)), None)
    shared = mixed.shared if mixed else None
    found = _routed_tells(spec)
    return {
        "interleave_moe_layer_step": 1,
        "leading_dense_block_count": found["leading_dense_block_count"],
        "expert_shared_count": found.get("expert_shared_count"),
        "expert_shared_feed_forward_length": shared.width if shared else None,
    }


def minimax_m2(header: Header) -> Config:
    keys = header.keys
    found = sizes(header, "MiniMaxM2ForCausalLM")
    turned, _ = turning(header, found["head_dim"])
    keys.expect("expert_feed_forward_length", found["intermediate_size"])
    return {
        **found,
        **rope(header, turned),
        **chosen(header, score="sigmoid"),
        "rotary_dim": turned,
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "num_local_experts": keys.size("expert_count"),
    }
