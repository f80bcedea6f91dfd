"""Llama and its like in GGUF: rotary positions, RMSNorm, a gated MLP; what their keys mean in Hugging Face's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lathe.errors import ConfigError
from lathe.families.ggml.header import Config, Facts, Header, called, chosen, named, sizes, window, windows
from lathe.families.ggml.scaling import LLAMA3, rope, scaling, turning
from lathe.model.spec import Attention, Spec


def dense(header: Header, architecture: str, ramp: tuple[float, float] = LLAMA3) -> Config:
    """Attention with rotary positions over whole heads, and RMSNorm: the Llama and all that is like it. `ramp`: as in
    `rope`."""
    found = sizes(header, architecture)
    channels = header.keys.size("rope.dimension_count", found["head_dim"])
    if channels != found["head_dim"]:
        raise header.keys.wrong("rope.dimension_count", channels, f"{found['head_dim']}, all channels of a head")
    found |= {"rms_norm_eps": header.keys.real("attention.layer_norm_rms_epsilon"), **rope(header, channels, ramp=ramp)}
    # Where queries, keys and values alone have one (Qwen 2), the architecture says so.
    if {"blk.0.attn_q.bias", "blk.0.attn_output.bias"} <= header.shapes.keys():
        found["attention_bias"] = True
    if "blk.0.ffn_gate.bias" in header.shapes:
        found["mlp_bias"] = True
    return found


def llama(header: Header) -> Config:
    """Windows are Mistral's, and llama.cpp itself does not heed them."""
    keys = header.keys
    mixed = keys.size("expert_count", 0, least=0)
    found = dense(header, "MixtralForCausalLM" if mixed else "LlamaForCausalLM")
    if mixed:
        keys.expect("expert_feed_forward_length", found["intermediate_size"])
        seen = window(header, found["num_hidden_layers"])
        return {**found, "num_local_experts": mixed, **chosen(header), "sliding_window": seen}
    keys.expect("expert_used_count", 0)
    size, local = windows(header, found["num_hidden_layers"])
    if not size:
        return found
    if all(local):
        return {**found, **called("MistralForCausalLM"), "sliding_window": size}
    return {**found, **called("MinistralForCausalLM"), "sliding_window": size, "layer_types": named(local)}


def qwen(header: Header, architecture: str) -> Config:
    """Windows in some layers, which llama.cpp itself does not heed."""
    found = dense(header, architecture)
    size, local = windows(header, found["num_hidden_layers"])
    if not size:
        return found
    return {**found, "use_sliding_window": True, "sliding_window": size, "layer_types": named(local)}


def granite(header: Header) -> Config:
    found, keys = dense(header, "GraniteForCausalLM"), header.keys
    return {
        **found,
        "attention_multiplier": keys.real("attention.scale", found["head_dim"] ** -0.5),
        "embedding_multiplier": keys.real("embedding_scale", 1.0),
        "residual_multiplier": keys.real("residual_scale", 1.0),
        "logits_scaling": keys.real("logit_scale", 1.0),
    }


def granite_tells(config: Mapping[str, Any], spec: Spec) -> Facts:
    return {
        "attention.scale": spec.layers[0].mixer.scale,
        "embedding_scale": spec.embed_scale,
        "residual_scale": spec.layers[0].residual,
        "logit_scale": 1 / spec.logit_scale,
    }


def phi3(header: Header) -> Config:
    found, keys = sizes(header, "Phi3ForCausalLM"), header.keys
    turned, share = turning(header, found["head_dim"])
    found |= {
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        "partial_rotary_factor": share,
        "sliding_window": keys.size("attention.sliding_window", 0, least=0) or None,
        **rope(header, turned),
    }
    if found["rope_scaling"]:  # Phi-3 keeps this one outside
        original = found["rope_scaling"].pop("original_max_position_embeddings", found["max_position_embeddings"])
        found["original_max_position_embeddings"] = original
    return found


def olmo2(header: Header) -> Config:
    """With windows it is OLMo 3, in which positions are stretched only where there is none."""
    found = dense(header, "Olmo2ForCausalLM")
    header.keys.expect("rope.freq_base_swa", found["rope_theta"])
    size, local = windows(header, found["num_hidden_layers"], 4)
    if not size:
        return found
    return {**found, **called("Olmo3ForCausalLM"), "sliding_window": size, "layer_types": named(local)}


def exaone4(header: Header) -> Config:
    found = dense(header, "Exaone4ForCausalLM")
    size, local = windows(header, found["num_hidden_layers"], 4)
    return {**found, "sliding_window": size or None, "layer_types": named(local)}


def seed_oss(header: Header) -> Config:
    _without(header, "attn_output.bias", "ffn_up.bias")
    biased = "blk.0.attn_q.bias" in header.shapes
    return {**dense(header, "SeedOssForCausalLM"), "attention_bias": biased, "attention_out_bias": False}


def ernie(header: Header) -> Config:
    _without(header, "attn_q.bias", "attn_output.bias", "ffn_up.bias")
    return {**dense(header, "Ernie4_5ForCausalLM"), "use_bias": False}


def _without(header: Header, *names: str) -> None:
    for name in names:
        if f"blk.0.{name}" in header.shapes:
            raise ConfigError(f'The GGUF file has a tensor "blk.0.{name}", which llama.cpp does not know there.')


def glm(header: Header, architecture: str) -> Config:
    found = sizes(header, architecture)
    turned, share = turning(header, found["head_dim"])
    return {
        **found,
        "rms_norm_eps": header.keys.real("attention.layer_norm_rms_epsilon"),
        "partial_rotary_factor": share,
        "attention_bias": not {"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"}.isdisjoint(header.shapes),
        **rope(header, turned),
    }


def ministral3(header: Header) -> Config:
    """Queries count for more far into the text, in steps of the first training's length."""
    keys = header.keys
    found = dense(header, "Ministral3ForCausalLM")
    stretch = keys.real("rope.scaling.yarn_log_multiplier", 0.0)
    scaling = found.pop("rope_scaling") or {"rope_type": "default"}
    if stretch:
        scaling |= {"mscale": stretch, "mscale_all_dim": stretch}
    heat = keys.real_or_none("attention.temperature_scale")
    if heat is not None:
        every = keys.size("rope.scaling.original_context_length", found["max_position_embeddings"])
        scaling |= {"llama_4_scaling_beta": heat, "original_max_position_embeddings": every}
    turned = {**scaling, "rope_theta": found.pop("rope_theta")}
    return {**found, "rope_parameters": turned, "sliding_window": window(header, found["num_hidden_layers"])}


def ministral3_tells(config: Mapping[str, Any], spec: Spec) -> Facts:
    mixer = spec.layers[0].mixer
    heat = mixer.temperature if isinstance(mixer, Attention) else None
    return {
        "attention.temperature_scale": heat.strength if heat else None,
        "rope.scaling.yarn_log_multiplier": scaling(config).get("mscale_all_dim"),
        "rope.scaling.yarn_attn_factor": None,  # which follows from the one before
    }
