"""LitGPT's shapes with RMSNorm, each read as the Hugging Face configuration of the same model."""

from __future__ import annotations

from typing import Any

from lathe.families.keys import Keys
from lathe.families.litgpt.sizes import Config, depth, gelu, kinds, marks, must, one_window, sizes, turning, windows


def _normed(keys: Keys, architecture: str, **rest: Any) -> Config:
    """What all models with RMSNorm and rotary positions say."""
    return {**sizes(keys, architecture), "rms_norm_eps": keys.real("norm_eps"), **turning(keys), **rest}


def gemma(keys: Keys) -> Config:
    must(keys, scale_embeddings=True)
    act = gelu(keys)
    if not keys.flag("post_attention_norm", False):
        return _normed(keys, "GemmaForCausalLM", hidden_act=act, hidden_activation=act)
    must(keys, post_mlp_norm=True)
    scalar = keys.size_or_none("attention_scores_scalar")
    found = _gemma3(keys) if keys.flag("norm_qk", False) else _normed(keys, "Gemma2ForCausalLM")
    window, slides = windows(keys)
    return {
        **found,
        "hidden_activation": act,
        "query_pre_attn_scalar": found["head_dim"] if scalar is None else scalar,
        "attn_logit_softcapping": keys.real_or_none("attention_logit_softcapping"),
        "final_logit_softcapping": keys.real_or_none("final_logit_softcapping"),
        "layer_types": kinds(slides),
        **({} if window is None else {"sliding_window": window}),
    }


def _gemma3(keys: Keys) -> Config:
    """Local layers turn at a speed of their own, and only global ones are stretched."""
    keys.expect("norm_qk_type", "default")
    keys.expect("rope_condense_ratio", 1)
    found = _normed(keys, "Gemma3ForCausalLM")
    local = keys.real_or_none("rope_local_base_freq")
    if local is None:
        if found["rope_scaling"]:
            raise keys.wrong("rope_local_base_freq", local, "a number beside rope_adjustments, which local layers lack")
        local = found["rope_theta"]
    elif list(marks(keys, "rope_indices", depth(keys))) != windows(keys)[1]:
        raise keys.wrong("rope_indices", keys.config.get("rope_indices"), "1 in the layers with a window, 0 elsewhere")
    return {**found, "rope_local_base_freq": local}


def llama(keys: Keys) -> Config:
    """One shape, seven names: told apart by what each has beyond the Llama."""
    if keys.flag("norm_qk", False):
        if keys.take("norm_qk_type", "default") == "olmo2":
            must(keys, norm_1=False, norm_2=False, post_attention_norm=True, post_mlp_norm=True)
            return _normed(keys, "Olmo2ForCausalLM")
        keys.expect("norm_qk_type", "default")
        return _normed(keys, "Qwen3ForCausalLM", **_some_windows(keys))
    bias, share = keys.flag("bias"), keys.real("rotary_percentage")
    if not bias and keys.flag("attn_bias", False):
        must(keys, rotary_percentage=1.0)
        return _normed(keys, "Qwen2ForCausalLM", **_some_windows(keys))
    window = one_window(keys)
    if bias and window is None and share == 1.0:
        keys.ignore("attn_bias")  # adds nothing to `bias`
        return _normed(keys, "LlamaForCausalLM", attention_bias=True, mlp_bias=True)
    must(keys, bias=False)
    if share != 1.0:
        return _normed(keys, "Phi3ForCausalLM", partial_rotary_factor=share, sliding_window=window)
    if window is not None:
        return _normed(keys, "MistralForCausalLM", sliding_window=window)
    return _normed(keys, "LlamaForCausalLM")


def _some_windows(keys: Keys) -> Config:
    window, slides = windows(keys)
    if window is None:
        return {"use_sliding_window": False}
    return {"use_sliding_window": True, "sliding_window": window, "layer_types": kinds(slides)}


def mixed(keys: Keys) -> Config:
    """LitGPT takes the softmax of the chosen scores, which makes the weights sum to 1."""
    if keys.part("latent_attention").config:
        return _deepseek(keys)
    chosen, each = keys.size("n_expert_per_token"), keys.size_or_none("moe_intermediate_size")
    count, window = keys.size("n_expert"), one_window(keys)
    if not keys.flag("norm_qk", False):
        found = _normed(keys, "MixtralForCausalLM", sliding_window=window)
        each = found["intermediate_size"] if each is None else each
        return {**found, "num_local_experts": count, "num_experts_per_tok": chosen, "intermediate_size": each}
    keys.expect("norm_qk_type", "default")
    found = _normed(keys, "Qwen3MoeForCausalLM", use_sliding_window=window is not None, sliding_window=window)
    return {
        **found,
        "num_experts": count,
        "num_experts_per_tok": chosen,
        "moe_intermediate_size": found["intermediate_size"] if each is None else each,
        "norm_topk_prob": True,
        "mlp_only_layers": list(range(min(keys.size("first_k_dense_replace", 0, least=0), depth(keys)))),
        "decoder_sparse_step": 1,
    }


def _deepseek(keys: Keys) -> Config:
    keys.expect("norm_eps", 1e-6)  # what the latents' own norms have; LitGPT gives all norms the same
    keys.expect("n_topk_scores_per_group", 2)
    keys.ignore("rotary_percentage", "head_size")
    latent, stretch = keys.part("latent_attention"), keys.part("rope_adjustments")
    ranks = ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    found = _normed(keys, "DeepseekV3ForCausalLM", **{name: latent.size(name) for name in ranks})
    if found["rope_scaling"] and found["rope_scaling"]["rope_type"] == "yarn":
        found["rope_scaling"] |= {n: stretch.real(n, 0.0) for n in ("mscale", "mscale_all_dim")}
    each = keys.size("moe_intermediate_size", found["intermediate_size"])
    return {
        **found,
        "head_dim": found["qk_rope_head_dim"],
        "rope_interleave": keys.flag("rope_interleave", False),
        "n_routed_experts": keys.size("n_expert"),
        "n_shared_experts": keys.size("n_shared_expert"),
        "num_experts_per_tok": keys.size("n_expert_per_token"),
        "moe_intermediate_size": each,
        "n_group": keys.size("n_expert_groups"),
        "topk_group": keys.size("n_topk_groups"),
        "first_k_dense_replace": keys.size("first_k_dense_replace", 0, least=0),
        "routed_scaling_factor": keys.real("routed_scaling_factor", 1.0),
        "norm_topk_prob": keys.flag("norm_topk_prob", False),
    }
