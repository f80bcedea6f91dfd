"""Gemma 1, 2 and 3 in GGUF: what their keys mean in Hugging Face's words."""

from __future__ import annotations

from lathe.families.ggml.header import Config, Header, named, windows
from lathe.families.ggml.llamas import dense


def gemma(header: Header) -> Config:
    act = "gelu_pytorch_tanh"
    return {**dense(header, "GemmaForCausalLM"), "hidden_act": act, "hidden_activation": act}


def gemma2(header: Header) -> Config:
    keys = header.keys
    found = dense(header, "Gemma2ForCausalLM")
    return {
        **found,
        **_gemma_windows(header, found, every=2, window=4096),
        "query_pre_attn_scalar": _gemma_scalar(found, largest=46),
        "attn_logit_softcapping": keys.real("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": keys.real("final_logit_softcapping", 30.0),
    }


def gemma3(header: Header) -> Config:
    keys = header.keys
    found = dense(header, "Gemma3ForCausalLM")
    return {
        **found,
        **_gemma_windows(header, found, every=6, window=0),
        "query_pre_attn_scalar": _gemma_scalar(found, largest=62),
        "final_logit_softcapping": keys.real_or_none("final_logit_softcapping"),
        "rope_local_base_freq": keys.real("rope.freq_base_swa", 10_000.0),
    }


def _gemma_windows(header: Header, found: Config, every: int, window: int) -> Config:
    window, local = windows(header, found["num_hidden_layers"], every, window)
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": named(local),
        **({"sliding_window": window} if window else {}),
    }


def _gemma_scalar(found: Config, largest: int) -> int:
    """What queries are scaled by is not in the file: llama.cpp tells the largest of a generation by its layers."""
    own = found["hidden_size"] // found["num_attention_heads"]
    return own if found["num_hidden_layers"] == largest else found["head_dim"]
