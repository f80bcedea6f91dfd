"""Mixtures of experts in GGUF: what their keys mean in Hugging Face's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lathe.errors import ConfigError
from lathe.families.ggml.header import Config, Facts, Header, called, chosen, named, window, windows
from lathe.families.ggml.llamas import dense, granite
from lathe.families.ggml.scaling import long_attention
from lathe.model.spec import Attention, Experts, Spec


def qwen3moe(header: Header) -> Config:
    keys = header.keys
    found = dense(header, "Qwen3MoeForCausalLM")
    seen = window(header, found["num_hidden_layers"])
    return {
        **found,
        **({"use_sliding_window": True, "sliding_window": seen} if seen else {}),
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
    size, local = windows(header, found["num_hidden_layers"], every=2)
    if found["rope_scaling"]:
        found["rope_scaling"] |= {"truncate": False}
    return {
        **found,
        **chosen(header),
        "num_local_experts": keys.size("expert_count"),
        "intermediate_size": keys.size("expert_feed_forward_length"),
        "sliding_window": size,
        "layer_types": named(local),
    }


def granitemoe(header: Header) -> Config:
    keys = header.keys
    found = {**granite(header), **called("GraniteMoeForCausalLM")}
    keys.expect("expert_feed_forward_length", found["intermediate_size"])
    return {**found, **chosen(header), "num_local_experts": keys.size("expert_count")}


def phimoe(header: Header) -> Config:
    """LayerNorm, whose epsilon is called that of RMSNorm. llama.cpp itself norms by the root mean square alone, and
    weighs the chosen experts by a softmax over them."""
    keys, name = header.keys, "PhimoeForCausalLM"
    found = {**dense(header, name), "lm_head_bias": "output.bias" in header.shapes}
    keys.expect("expert_feed_forward_length", found["intermediate_size"])
    stretched = found["rope_scaling"]
    if stretched and stretched["rope_type"] == "longrope":  # in which short and long sequences may differ
        original, context = stretched["original_max_position_embeddings"], found["max_position_embeddings"]
        factor = stretched.pop("attention_factor", long_attention(context / original, original))
        stretched |= {"short_mscale": factor, "long_mscale": factor}
        found["original_max_position_embeddings"] = original
    return {
        **found,
        **chosen(header),
        "num_local_experts": keys.size("expert_count"),
        "sliding_window": window(header, found["num_hidden_layers"]),
    }


def phimoe_tells(config: Mapping[str, Any], spec: Spec) -> Facts:
    return {"attention.layer_norm_epsilon": None, "attention.layer_norm_rms_epsilon": spec.norm.eps}


def llama4(header: Header) -> Config:
    """Chunks with positions and every fourth layer without either; llama.cpp itself takes both lengths to be 8192."""
    keys = header.keys
    found = dense(header, "Llama4ForCausalLM", ramp=(1.0, 1.0))
    if "blk.0.attn_output.bias" in header.shapes:
        raise ConfigError('The GGUF file has a tensor "blk.0.attn_output.bias", which llama.cpp does not know there.')
    layers, count = found["num_hidden_layers"], keys.size("expert_count")
    chunk, local = windows(header, layers, every=4, window=8192)
    return {
        **found,
        **chosen(header, norm=False, score="sigmoid"),
        "num_local_experts": count,
        "intermediate_size": keys.size("expert_feed_forward_length"),
        "intermediate_size_mlp": found["intermediate_size"],
        "interleave_moe_layer_step": keys.size("interleave_moe_layer_step"),
        "attention_chunk_size": chunk or None,
        "layer_types": ["chunked_attention" if slides else "full_attention" for slides in local],
        "no_rope_layers": [int(not chunk or (n + 1) % 4 != 0) for n in range(layers)],
        "attn_scale": keys.real("attention.temperature_scale", 0.1),
        "floor_scale": keys.size("attention.temperature_length", 8192),
        "use_qk_norm": count != 128,
    }


def llama4_tells(config: Mapping[str, Any], spec: Spec) -> Facts:
    mixers = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, Attention)]
    heat = next((mixer.temperature for mixer in mixers if mixer.temperature), None)
    chunks = [mixer.chunk for mixer in mixers]
    return {
        "interleave_moe_layer_step": 1 + next(n for n, la in enumerate(spec.layers) if isinstance(la.mlp, Experts)),
        "attention.sliding_window": next(filter(None, chunks), 0),
        "attention.sliding_window_pattern": [chunk is not None for chunk in chunks] if any(chunks) else None,
        "attention.temperature_scale": heat.strength if heat else None,
        "attention.temperature_length": heat.every if heat else None,
    }
