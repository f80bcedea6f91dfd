"""GPT-2, GPT-NeoX and their like in GGUF: LayerNorm and a plain MLP; what their keys mean in Hugging Face's words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lathe.errors import ConfigError
from lathe.families.ggml.header import Config, Facts, Header, sizes
from lathe.families.ggml.scaling import rope, turning
from lathe.model.spec import Spec


def _alike(header: Header, architecture: str) -> tuple[Config, int]:
    """Sizes where all heads, of queries, keys and values, are alike; and how many channels each has."""
    found = sizes(header, architecture)
    heads, channels = found["num_attention_heads"], found["hidden_size"] // found["num_attention_heads"]
    for name, expected in (("num_key_value_heads", heads), ("head_dim", channels)):
        if found.pop(name) != expected:
            raise ConfigError(f"GGUF metadata has another {name} than {expected}, which {architecture} cannot have.")
    return found, channels


def neox(header: Header) -> Config:
    """Its activation is not in the file: some have the tanh form, to which llama.cpp rounds the others."""
    keys = header.keys
    found, channels = _alike(header, "GPTNeoXForCausalLM")
    turned, share = turning(header, channels)
    turns = rope(header, turned)
    return {
        **found,
        "layer_norm_eps": keys.real("attention.layer_norm_epsilon"),
        "hidden_act": "gelu",
        "rotary_emb_base": turns["rope_theta"],
        "rotary_pct": share,
        "rope_scaling": turns["rope_scaling"],
        "use_parallel_residual": keys.flag("use_parallel_residual"),
        "attention_bias": "blk.0.attn_qkv.bias" in header.shapes,
    }


def neox_tells(config: Mapping[str, Any], spec: Spec) -> Facts:
    return {"use_parallel_residual": spec.layers[0].order == "parallel"}


def gpt2(header: Header) -> Config:
    found, _ = _alike(header, "GPT2LMHeadModel")
    return _in_old_words(header, found) | {"activation_function": "gelu_new"}


def starcoder(header: Header) -> Config:
    """GPT-2 in which all heads share a key and a value, or none do. Its activation is not in the file: StarCoder's."""
    found = sizes(header, "GPTBigCodeForCausalLM")
    heads, kv = found["num_attention_heads"], found.pop("num_key_value_heads")
    if kv not in (1, heads) or found.pop("head_dim") != found["hidden_size"] // heads:
        raise header.keys.wrong("attention.head_count_kv", kv, f"1 or {heads}, and heads as wide as the model together")
    return _in_old_words(header, found) | {"multi_query": kv == 1, "activation_function": "gelu"}


def _in_old_words(header: Header, found: Config) -> Config:
    words = {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_inner": "intermediate_size",
        "n_positions": "max_position_embeddings",
    }
    return {
        **{key: value for key, value in found.items() if key not in words.values()},
        **{word: found[key] for word, key in words.items()},
        "layer_norm_epsilon": header.keys.real("attention.layer_norm_epsilon"),
    }
