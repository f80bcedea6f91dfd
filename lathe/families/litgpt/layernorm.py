"""LitGPT's shapes with LayerNorm, each read as the Hugging Face configuration of the same model."""

from __future__ import annotations

from lathe.families.keys import Keys
from lathe.families.litgpt.sizes import Config, gelu, must, named, sizes, turning


def plain(keys: Keys) -> Config:
    """LayerNorm before an MLP without a gate: three lineages, told apart by the head's bias, norms and groups."""
    if keys.flag("lm_head_bias", False):
        return _phi(keys)
    groups = keys.size("n_query_groups", keys.size("n_head")) != keys.size("n_head")
    if keys.flag("bias") and not groups and not keys.flag("shared_attention_norm", False):
        return _neox(keys)
    return _falcon(keys)


def _own(keys: Keys, found: Config) -> Config:
    """Where heads share the width evenly, and nothing else can be said."""
    keys.expect("head_size", found["hidden_size"] // found["num_attention_heads"])
    return {name: value for name, value in found.items() if name != "head_dim"}


def _neox(keys: Keys) -> Config:
    keys.ignore("attn_bias")  # adds nothing to `bias`
    found, turned = _own(keys, sizes(keys, "GPTNeoXForCausalLM")), turning(keys)
    del found["num_key_value_heads"]
    return {
        **found,
        "layer_norm_eps": keys.real("norm_eps"),
        "hidden_act": gelu(keys),
        "rotary_emb_base": turned["rope_theta"],
        "rotary_pct": keys.real("rotary_percentage"),
        "rope_scaling": turned["rope_scaling"],
        "use_parallel_residual": keys.flag("parallel_residual"),
    }


def _phi(keys: Keys) -> Config:
    must(keys, bias=True, parallel_residual=True, shared_attention_norm=True)
    keys.ignore("attn_bias")
    keys.expect("norm_qk_type", "default")
    return {
        **_own(keys, sizes(keys, "PhiForCausalLM")),
        **turning(keys),
        "layer_norm_eps": keys.real("norm_eps"),
        "hidden_act": gelu(keys),
        "partial_rotary_factor": keys.real("rotary_percentage"),
        "qk_layernorm": keys.flag("norm_qk", False),
    }


def _falcon(keys: Keys) -> Config:
    """The first Falcon has one norm, and one key head or one for each query; the next have groups, and a norm for each
    side, or one for both."""
    must(keys, rotary_percentage=1.0)
    beside, bias, shared = (keys.flag(n) for n in ("parallel_residual", "bias", "shared_attention_norm"))
    if bias:
        keys.ignore("attn_bias")
    found = _own(keys, sizes(keys, "FalconForCausalLM"))
    groups, width = found.pop("num_key_value_heads"), found.pop("intermediate_size")
    first = groups in (1, found["num_attention_heads"]) and shared == beside
    if not (first or beside):
        raise keys.wrong("parallel_residual", beside, "true in a Falcon whose query heads fall into groups")
    return {
        **found,
        **turning(keys),
        "ffn_hidden_size": width,
        "num_kv_heads": groups,
        "layer_norm_epsilon": keys.real("norm_eps"),
        "activation": gelu(keys),
        "new_decoder_architecture": not first,
        "multi_query": groups == 1,
        "parallel_attn": beside,
        "num_ln_in_parallel_attn": None if first else 1 if shared else 2,
        "alibi": False,
        "bias": bias,
    }


def gated(keys: Keys) -> Config:
    """LayerNorm before a gated MLP. LitGPT's LayerNorms have no weights where a model's name contains "OLMo"."""
    if "OLMo" in named(keys):
        must(keys, rotary_percentage=1.0, norm_eps=1e-5)
        found = sizes(keys, "OlmoForCausalLM")
        return {**_own(keys, found), **turning(keys), "clip_qkv": None}
    found = _own(keys, sizes(keys, "StableLmForCausalLM"))
    both = keys.flag("parallel_residual")
    must(keys, shared_attention_norm=both, bias=False)
    return {
        **found,
        **turning(keys),
        "layer_norm_eps": keys.real("norm_eps"),
        "partial_rotary_factor": keys.real("rotary_percentage"),
        "use_parallel_residual": both,
        "use_qkv_bias": keys.flag("attn_bias", False),
    }
