"""LayerNorm and rotary positions in GGUF, from StableLM to Cohere: what their keys mean in Hugging Face's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lathe.errors import ConfigError
from lathe.families.ggml.header import Config, Facts, Header, named, sizes, window, windows
from lathe.families.ggml.scaling import rope, turning
from lathe.model.spec import Spec


def _turning(header: Header, architecture: str, eps: str = "layer_norm_eps") -> Config:
    """LayerNorm, and positions on some of a head's channels. eps: what the configuration calls the norm's."""
    found = sizes(header, architecture)
    turned, share = turning(header, found["head_dim"])
    found |= {eps: header.keys.real("attention.layer_norm_epsilon"), **rope(header, turned)}
    return found | {"partial_rotary_factor": share}


def stablelm(header: Header) -> Config:
    """Without a second norm, attention and MLP share the first; the file's own word for it was not always right."""
    keys, shapes = header.keys, header.shapes
    keys.ignore("use_parallel_residual")
    return {
        **_turning(header, "StableLmForCausalLM"),
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in shapes,
        "use_qkv_bias": "blk.0.attn_q.bias" in shapes,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in shapes,
    }


def stablelm_tells(config: Mapping[str, Any], spec: Spec) -> Facts:
    return {"use_parallel_residual": spec.layers[0].order == "shared"}


def phi2(header: Header) -> Config:
    return _turning(header, "PhiForCausalLM") | {"hidden_act": "gelu_new"}


def nemotron(header: Header) -> Config:
    header.keys.ignore("attention.layer_norm_rms_epsilon")  # which the converter writes beside the right one
    biased = {
        "attention_bias": "blk.0.attn_output.bias" in header.shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in header.shapes,
    }
    return _turning(header, "NemotronForCausalLM", "norm_eps") | {"hidden_act": "relu2", **biased}


def starcoder2(header: Header) -> Config:
    """Its window is one that llama.cpp itself does not heed."""
    found = _turning(header, "Starcoder2ForCausalLM", "norm_epsilon")
    if found.pop("partial_rotary_factor") != 1:
        raise header.keys.wrong(
            "rope.dimension_count", header.keys.take("rope.dimension_count"), "all channels of a head"
        )
    seen = window(header, found["num_hidden_layers"])
    return found | {"use_bias": "blk.0.attn_q.bias" in header.shapes, "sliding_window": seen}


def falcon(header: Header) -> Config:
    """llama.cpp has no biases in it. Of two norms, the one called the second is attention's."""
    found = _turning(header, "FalconForCausalLM", "layer_norm_epsilon")
    kv, heads = found.pop("num_key_value_heads"), found["num_attention_heads"]
    if found.pop("head_dim") != found["hidden_size"] // heads or found.pop("partial_rotary_factor") != 1:
        raise ConfigError("GGUF metadata gives Falcon heads of a size that it cannot have.")
    if "blk.0.attn_qkv.bias" in header.shapes:
        raise ConfigError("The GGUF file has a Falcon with biases, which llama.cpp does not know.")
    norms = 2 if "blk.0.attn_norm_2.weight" in header.shapes else 1
    found["ffn_hidden_size"] = found.pop("intermediate_size")
    return {
        **found,
        "num_kv_heads": kv,
        "new_decoder_architecture": kv > 1 or norms > 1,
        "num_ln_in_parallel_attn": norms,
        "multi_query": kv == 1,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
    }


def falcon_tells(config: Mapping[str, Any], spec: Spec) -> Facts:
    return {"tensor_data_layout": "jploski"}


def olmo(header: Header) -> Config:
    """Norms without weights, whose epsilon the code gives."""
    keys = header.keys
    keys.expect("attention.layer_norm_epsilon", 1e-5)
    found = sizes(header, "OlmoForCausalLM")
    turned, _ = turning(header, found["head_dim"])
    return {**found, **rope(header, turned), "clip_qkv": keys.real_or_none("attention.clamp_kqv")}


def cohere(header: Header) -> Config:
    return {
        **_cohere(header, "CohereForCausalLM"),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in header.shapes,
    }


def cohere2(header: Header) -> Config:
    found = _cohere(header, "Cohere2ForCausalLM")
    size, local = windows(header, found["num_hidden_layers"], 4)
    if not size:
        raise header.keys.wrong("attention.sliding_window", size, "at least 1")
    return {**found, "sliding_window": size, "layer_types": named(local)}


def _cohere(header: Header, architecture: str) -> Config:
    found = _turning(header, architecture)
    if found.pop("partial_rotary_factor") != 1 or not found["tie_word_embeddings"]:
        raise ConfigError("The GGUF file has a head of its own, or heads that turn in part, which Cohere has not.")
    if "blk.0.attn_output.bias" in header.shapes:
        raise ConfigError("The GGUF file has a Cohere with biases, which llama.cpp does not know.")
    return found | {"logit_scale": header.keys.real("logit_scale", 1.0)}


def cohere_tells(config: Mapping[str, Any], spec: Spec) -> Facts:
    return {"logit_scale": spec.logit_scale, "rope.scaling.type": "none"}
