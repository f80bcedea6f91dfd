"""The shapes of block that LitGPT builds, each read as the Hugging Face configuration of the same model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lathe.families import FAMILIES
from lathe.families.keys import Keys

Config = dict[str, Any]

MOST_LAYERS = 10_000
GELU = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}


def _sizes(keys: Keys, architecture: str) -> Config:
    heads, width, vocab = keys.size("n_head"), keys.size("n_embd"), keys.size("vocab_size")
    head = keys.size("head_size", width // heads)
    return {
        "architectures": [architecture],
        "model_type": FAMILIES[architecture].model_type,
        "vocab_size": keys.size("padded_vocab_size", vocab + -vocab % keys.size("padding_multiple")),
        "hidden_size": width,
        "intermediate_size": keys.size("intermediate_size", 4 * width),
        "num_hidden_layers": _layers(keys),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("n_query_groups", heads),
        "head_dim": head,
        "max_position_embeddings": keys.size("block_size"),
        "tie_word_embeddings": False,
        # Where some configurations name no token for padding, transformers takes one, be there so many or not.
        "pad_token_id": None,
    }


def _layers(keys: Keys) -> int:
    """How many, below what would only fill the memory with lists."""
    layers = keys.size("n_layer")
    if layers > MOST_LAYERS:
        raise keys.wrong("n_layer", layers, f"at most {MOST_LAYERS}")
    return layers


def _rms(keys: Keys, architecture: str, **rest: Any) -> Config:
    """What all models with RMSNorm and rotary positions say."""
    return {**_sizes(keys, architecture), "rms_norm_eps": keys.real("norm_eps"), **_rope(keys), **rest}


def _rope(keys: Keys) -> Config:
    """`rope_theta` and `rope_scaling`; YaRN as its paper has it, not with LitGPT's ramp, which runs the wrong way."""
    condense, part = keys.real("rope_condense_ratio", 1.0), keys.part("rope_adjustments")
    scaling: Config | None = None
    if part.config.keys() & {"low_freq_factor", "high_freq_factor"}:
        scaling = {
            "rope_type": "llama3",
            **{n: part.real(n) for n in ("factor", "low_freq_factor", "high_freq_factor")},
        }
    elif part.config.keys() & {"beta_fast", "beta_slow"}:
        scaling = {"rope_type": "yarn", **{n: part.real(n) for n in ("factor", "beta_fast", "beta_slow")}}
    elif part.config or condense != 1:
        scaling = {"rope_type": "linear", "factor": part.real("factor", 1.0) * condense}
    if scaling and scaling["rope_type"] != "linear":
        scaling["original_max_position_embeddings"] = part.size("original_max_seq_len")
        if condense != 1:
            raise keys.wrong("rope_condense_ratio", condense, "1 beside rope_adjustments of this kind")
    return {"rope_theta": keys.real("rope_base"), "rope_scaling": scaling}


def _windows(keys: Keys) -> tuple[int | None, list[bool]]:
    """How many tokens a window spans, and which layers look through it."""
    layers, window = _layers(keys), keys.size_or_none("sliding_window_size")
    return window, [window is not None and mark == 1 for mark in _marks(keys, "sliding_window_indices", layers)]


def _marks(keys: Keys, name: str, layers: int) -> tuple[float, ...]:
    """A 0 or 1 for each layer; more than there are layers may be given, none means all 1."""
    marks = keys.numbers(name, [1] * layers)
    if len(marks) < layers or not set(marks) <= {0, 1}:
        raise keys.wrong(name, list(marks), f"a list of {layers}, each 0 or 1")
    return marks[:layers]


def _window(keys: Keys) -> int | None:
    """The window where all layers must have the same."""
    window, slides = _windows(keys)
    if window is not None and not all(slides):
        raise keys.wrong("sliding_window_indices", slides, "1 for every layer, in a model of this shape")
    return window


def _kinds(slides: list[bool]) -> list[str]:
    return ["sliding_attention" if slide else "full_attention" for slide in slides]


def _gelu(keys: Keys) -> str:
    approximate = keys.take("gelu_approximate", "none")
    if not isinstance(approximate, str) or approximate not in GELU:
        raise keys.wrong("gelu_approximate", approximate, " or ".join(GELU))
    return GELU[approximate]


def _must(keys: Keys, **values: Any) -> None:
    """Keys without which a shape is not the one it looks like."""
    for name, value in values.items():
        found = keys.take(name, None)
        if found != value:
            raise keys.wrong(name, found, f"{value!r} beside the rest of this configuration")


def _gemma(keys: Keys) -> Config:
    _must(keys, scale_embeddings=True)
    act = _gelu(keys)
    if not keys.flag("post_attention_norm", False):
        return _rms(keys, "GemmaForCausalLM", hidden_act=act, hidden_activation=act)
    _must(keys, post_mlp_norm=True)
    scalar = keys.size_or_none("attention_scores_scalar")
    found = _gemma3(keys) if keys.flag("norm_qk", False) else _rms(keys, "Gemma2ForCausalLM")
    window, slides = _windows(keys)
    return {
        **found,
        "hidden_activation": act,
        "query_pre_attn_scalar": found["head_dim"] if scalar is None else scalar,
        "attn_logit_softcapping": keys.real_or_none("attention_logit_softcapping"),
        "final_logit_softcapping": keys.real_or_none("final_logit_softcapping"),
        "layer_types": _kinds(slides),
        **({} if window is None else {"sliding_window": window}),
    }


def _gemma3(keys: Keys) -> Config:
    """Local layers turn at a speed of their own, and only global ones are stretched."""
    keys.expect("norm_qk_type", "default")
    keys.expect("rope_condense_ratio", 1)
    found = _rms(keys, "Gemma3ForCausalLM")
    local = keys.real_or_none("rope_local_base_freq")
    if local is None:
        if found["rope_scaling"]:
            raise keys.wrong("rope_local_base_freq", local, "a number beside rope_adjustments, which local layers lack")
        local = found["rope_theta"]
    elif list(_marks(keys, "rope_indices", _layers(keys))) != _windows(keys)[1]:
        raise keys.wrong("rope_indices", keys.config.get("rope_indices"), "1 in the layers with a window, 0 elsewhere")
    return {**found, "rope_local_base_freq": local}


def _llama(keys: Keys) -> Config:
    """One shape, seven names: told apart by what each has beyond the Llama."""
    if keys.flag("norm_qk", False):
        if keys.take("norm_qk_type", "default") == "olmo2":
            _must(keys, norm_1=False, norm_2=False, post_attention_norm=True, post_mlp_norm=True)
            return _rms(keys, "Olmo2ForCausalLM")
        keys.expect("norm_qk_type", "default")
        return _rms(keys, "Qwen3ForCausalLM", **_some_windows(keys))
    bias, share = keys.flag("bias"), keys.real("rotary_percentage")
    if not bias and keys.flag("attn_bias", False):
        _must(keys, rotary_percentage=1.0)
        return _rms(keys, "Qwen2ForCausalLM", **_some_windows(keys))
    window = _window(keys)
    if bias and window is None and share == 1.0:
        keys.ignore("attn_bias")  # adds nothing to `bias`
        return _rms(keys, "LlamaForCausalLM", attention_bias=True, mlp_bias=True)
    _must(keys, bias=False)
    if share != 1.0:
        return _rms(keys, "Phi3ForCausalLM", partial_rotary_factor=share, sliding_window=window)
    if window is not None:
        return _rms(keys, "MistralForCausalLM", sliding_window=window)
    return _rms(keys, "LlamaForCausalLM")


def _some_windows(keys: Keys) -> Config:
    window, slides = _windows(keys)
    if window is None:
        return {"use_sliding_window": False}
    return {"use_sliding_window": True, "sliding_window": window, "layer_types": _kinds(slides)}


def _mixed(keys: Keys) -> Config:
    """LitGPT takes the softmax of the chosen scores, which makes the weights sum to 1."""
    if keys.part("latent_attention").config:
        return _deepseek(keys)
    chosen, each = keys.size("n_expert_per_token"), keys.size_or_none("moe_intermediate_size")
    count, window = keys.size("n_expert"), _window(keys)
    if not keys.flag("norm_qk", False):
        found = _rms(keys, "MixtralForCausalLM", sliding_window=window)
        each = found["intermediate_size"] if each is None else each
        return {**found, "num_local_experts": count, "num_experts_per_tok": chosen, "intermediate_size": each}
    keys.expect("norm_qk_type", "default")
    found = _rms(keys, "Qwen3MoeForCausalLM", use_sliding_window=window is not None, sliding_window=window)
    return {
        **found,
        "num_experts": count,
        "num_experts_per_tok": chosen,
        "moe_intermediate_size": found["intermediate_size"] if each is None else each,
        "norm_topk_prob": True,
        "mlp_only_layers": list(range(min(keys.size("first_k_dense_replace", 0, least=0), _layers(keys)))),
        "decoder_sparse_step": 1,
    }


def _deepseek(keys: Keys) -> Config:
    keys.expect("norm_eps", 1e-6)  # what the latents' own norms have; LitGPT gives all norms the same
    keys.expect("n_topk_scores_per_group", 2)
    keys.ignore("rotary_percentage", "head_size")
    latent, stretch = keys.part("latent_attention"), keys.part("rope_adjustments")
    ranks = ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    found = _rms(keys, "DeepseekV3ForCausalLM", **{name: latent.size(name) for name in ranks})
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


def _neox(keys: Keys) -> Config:
    _must(keys, bias=True)
    keys.ignore("attn_bias")  # adds nothing to `bias`
    found, rope = _sizes(keys, "GPTNeoXForCausalLM"), _rope(keys)
    heads, width = found["num_attention_heads"], found["hidden_size"]
    keys.expect("n_query_groups", heads)
    keys.expect("head_size", width // heads)
    del found["num_key_value_heads"], found["head_dim"]
    return {
        **found,
        "layer_norm_eps": keys.real("norm_eps"),
        "hidden_act": _gelu(keys),
        "rotary_emb_base": rope["rope_theta"],
        "rotary_pct": keys.real("rotary_percentage"),
        "rope_scaling": rope["rope_scaling"],
        "use_parallel_residual": keys.flag("parallel_residual"),
    }


SHAPES: dict[tuple[str, str], Callable[[Keys], Config]] = {
    ("RMSNorm", "LLaMAMLP"): _llama,
    ("RMSNorm", "LLaMAMoE"): _mixed,
    ("RMSNorm", "GemmaMLP"): _gemma,
    ("LayerNorm", "GptNeoxMLP"): _neox,
}
