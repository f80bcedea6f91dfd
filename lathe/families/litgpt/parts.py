"""The parts of a Spec become LitGPT's `model_config.yaml`, or an error that says what LitGPT cannot do.

Each part is written as LitGPT has it, and what came of it is read back: only if that gives the same Spec does
the file say what the model is. So a part that LitGPT has no word for need not be known here to be refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from lathe import families
from lathe.errors import ConfigError
from lathe.families.litgpt.configuration import DEFAULTS, IDLE, OFF, config
from lathe.families.litgpt.sizes import Config
from lathe.model.spec import (
    Attention,
    Experts,
    Gated,
    LatentAttention,
    Linear,
    Llama3,
    Mlp,
    Norm,
    Plain,
    RMSNorm,
    Rope,
    Router,
    Scaling,
    SparseMixer,
    Spec,
    Yarn,
)

# What LitGPT calls a model of each architecture. It looks into the name when it builds norms ("Gemma": one is added to
# their weights; "OLMo": LayerNorms have none) and when it converts, so the names begin as those it publishes do; and
# when it picks a prompt style, which these leave at the default where a family has models of many styles.
FALCON, FIRST_FALCON = "falcon-40b", "falcon-7b"  # whose names it tells norms' names by
NAMES = {
    "GemmaForCausalLM": "Gemma",
    "Gemma2ForCausalLM": "Gemma-2",
    "Gemma3ForCausalLM": "Gemma-3",
    "GPTNeoXForCausalLM": "pythia",
    "FalconForCausalLM": FALCON,
    "MistralForCausalLM": "Mistral",
    "MixtralForCausalLM": "Mixtral",
    "OlmoForCausalLM": "OLMo",
    "Olmo2ForCausalLM": "OLMo-2-",
    "PhiForCausalLM": "phi",
    "Phi3ForCausalLM": "Phi-3",
    "Qwen2ForCausalLM": "Qwen2.5",
    "Qwen3ForCausalLM": "Qwen3",
    "Qwen3MoeForCausalLM": "Qwen3",
    "StableLmForCausalLM": "stablelm",
    "DeepseekV3ForCausalLM": "DeepSeek-V3",
}


def settings(config: Mapping[str, Any], spec: Spec) -> Config:
    """What `model_config.yaml` says of a model, all fields of LitGPT 0.5.13's Config, to be dumped with sorted keys.

    LitGPT has no word for a tied head: its files hold that tensor under both names.

    Raises:
        ConfigError: LitGPT cannot express the model, or would compute another.
    """
    told: Config = {**dict.fromkeys((*OFF, *IDLE, *ALWAYS_NULL)), **DEFAULTS, **NEUTRAL, **_parts(spec)}
    found = (families.find(config).architecture, _read(told, spec)["architectures"][0])
    told["name"] = next((NAMES[name] for name in found if name in NAMES), "Llama")
    if told["name"] == FALCON and told["shared_attention_norm"]:
        told["name"] = FIRST_FALCON
    return told


# Fields that are null unless a part says otherwise, beside those that reading knows.
ALWAYS_NULL = ("head_size", "n_query_groups", "intermediate_size", "padded_vocab_size", "rope_adjustments")
# What LitGPT has in a field of which this model makes no use; some of its code takes no null there.
NEUTRAL: Config = {
    **{name: off for name, off in OFF.items() if name not in ("first_k_dense_replace", "n_shared_expert")},
    "norm_qk_type": "default",
    "gelu_approximate": "none",
    "n_expert_per_token": 0,
    "norm_topk_prob": False,
}


def _parts(spec: Spec) -> Config:
    first = spec.layers[0]
    norm = first.norm
    return {
        "name": _marked(norm),
        "block_size": spec.context,
        "n_layer": len(spec.layers),
        "n_embd": spec.width,
        "vocab_size": spec.vocab,
        "padded_vocab_size": spec.vocab,
        "norm_class_name": type(norm).__name__,
        "norm_eps": norm.eps,
        "scale_embeddings": spec.embed_scale == math.sqrt(spec.width),
        "final_logit_softcapping": spec.logit_softcap,
        "lm_head_bias": spec.head_bias,
        **ORDERS[first.order],
        **_mixers(spec),
        **_mlps([layer.mlp for layer in spec.layers]),
    }


def _marked(norm: Norm) -> str:
    """What of a name LitGPT needs to build the norms."""
    if isinstance(norm, RMSNorm):
        return "Gemma" if norm.offset else ""
    return "" if norm.affine else "OLMo"


ORDERS: dict[str, Config] = {
    "pre": {"parallel_residual": False},
    "parallel": {"parallel_residual": True},
    "shared": {"parallel_residual": True, "shared_attention_norm": True},
    "post": {"norm_1": False, "norm_2": False, "post_attention_norm": True, "post_mlp_norm": True},
    "sandwich": {"post_attention_norm": True, "post_mlp_norm": True},
}


def _mixers(spec: Spec) -> Config:
    mixer = spec.layers[0].mixer
    windows = [layer.mixer.window for layer in spec.layers]
    window = next((w for w in windows if w is not None), None)
    slides = None if window is None else [int(w is not None) for w in windows]
    found: Config = {"sliding_window_size": window, "sliding_window_indices": slides, "n_head": mixer.heads}
    if isinstance(mixer, LatentAttention):
        return found | _latent(mixer)
    # One layer that sees all, and one that slides: in Gemma 3 they turn at different speeds.
    far = next((layer.mixer for layer in spec.layers if layer.mixer.window is None), mixer)
    near = next((layer.mixer for layer in spec.layers if layer.mixer.window is not None), mixer)
    assert isinstance(far, Attention) and isinstance(near, Attention)
    if far.rope is None or near.rope is None or any(layer.mixer.rope is None for layer in spec.layers):
        raise _cannot("it has no layers without rotary positions")
    if far.rope != near.rope:
        found |= {"rope_local_base_freq": near.rope.base, "rope_indices": slides}
    norm = mixer.qk_norm
    if norm and norm.over == "own head":
        raise _cannot("it has no norm of each head's own")
    return {
        **found,
        "n_query_groups": mixer.kv_heads,
        "head_size": mixer.channels,
        # `bias` is that of all projections, of the MLP too
        "bias": mixer.out_bias,
        "attn_bias": mixer.qkv_bias and not mixer.out_bias,
        "attention_scores_scalar": _scalar(mixer.scale, mixer.channels),
        "attention_logit_softcapping": mixer.softcap,
        "norm_qk": norm is not None,
        "norm_qk_type": "olmo2" if norm and norm.over == "row" else "default",
        **_rope(far.rope, mixer.channels),
    }


def _scalar(scale: float, channels: int) -> int | None:
    """LitGPT's scores are divided by the root of a whole number, the head's channels where it is null."""
    return None if scale == channels**-0.5 else round(scale**-2)


def _rope(rope: Rope, channels: int) -> Config:
    share = rope.channels / channels
    if int(share * channels) < rope.channels:  # as LitGPT counts them
        share = (rope.channels + 0.5) / channels
    return {
        "rope_base": int(rope.base) if rope.base == int(rope.base) else rope.base,
        "rotary_percentage": share,
        "rope_interleave": rope.interleaved,
        "rope_adjustments": _adjustments(rope.scaling),
    }


def _adjustments(scaling: Scaling | None) -> Config | None:
    match scaling:
        case None:
            return None
        case Linear(factor):
            return {"factor": factor}
        case Llama3(factor, low, high, original):
            numbers = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
            return {**numbers, "original_max_seq_len": original}
        case Yarn():
            raise _cannot("its YaRN keeps the speeds that it should stretch and stretches those it should keep")
    raise _cannot(f"it has no {type(scaling).__name__} for positions")


def _latent(mixer: LatentAttention) -> Config:
    return {
        "n_query_groups": mixer.heads,
        "head_size": mixer.plain_channels + mixer.rope.channels,
        "bias": False,
        "attn_bias": mixer.bias,
        "attention_scores_scalar": _scalar(mixer.scale, mixer.plain_channels + mixer.rope.channels),
        "attention_logit_softcapping": mixer.softcap,
        "latent_attention": {
            "q_lora_rank": mixer.q_rank,
            "kv_lora_rank": mixer.kv_rank,
            "qk_rope_head_dim": mixer.rope.channels,
            "qk_nope_head_dim": mixer.plain_channels,
            "v_head_dim": mixer.value_channels,
        },
        **_rope(mixer.rope, mixer.rope.channels),
    }


def _mlps(mlps: list[Mlp]) -> Config:
    first, last = mlps[0], mlps[-1]
    if isinstance(last, Plain):
        return {"mlp_class_name": "GptNeoxMLP", "intermediate_size": last.width, "gelu_approximate": _gelu(last.act)}
    if isinstance(last, Gated):
        kind = "LLaMAMLP" if last.act == "silu" else "GemmaMLP"
        approximate = "none" if kind == "LLaMAMLP" else _gelu(last.act)
        return {"mlp_class_name": kind, "intermediate_size": last.width, "gelu_approximate": approximate}
    dense = next((i for i, mlp in enumerate(mlps) if isinstance(mlp, Experts)), 0)
    return {
        "mlp_class_name": "LLaMAMoE",
        "intermediate_size": first.width if isinstance(first, Gated) else last.each.width,
        "moe_intermediate_size": last.each.width,
        "first_k_dense_replace": dense or None,
        "n_shared_expert": last.shared.width // last.each.width if last.shared else None,
        **_router(last.router),
    }


def _gelu(act: str) -> str:
    for theirs, ours in (("none", "gelu"), ("tanh", "gelu_tanh")):
        if act == ours:
            return theirs
    raise _cannot(f"it has no MLP with {act}")


def _router(router: Router | SparseMixer) -> Config:
    if isinstance(router, SparseMixer):
        raise _cannot("it has no experts chosen one after the other")
    found = {"n_expert": router.count, "n_expert_per_token": router.chosen, "norm_topk_prob": router.renormalise}
    if router.score == "softmax":
        return found
    groups = {"n_expert_groups": router.groups, "n_topk_groups": router.top_groups, "n_topk_scores_per_group": 2}
    return {**found, **groups, "routed_scaling_factor": router.scale}


def _read(told: Config, spec: Spec) -> Config:
    """The Hugging Face configuration that `told` is read as, which must be that of `spec`."""
    try:
        found = config(told)
        again = families.read(found)
    except ConfigError as error:
        raise _cannot("no model that it builds has these parts together", f"{error.found} {error.expected}") from error
    for where, ours, theirs in _differences(replace(spec, tied=False), again):
        raise _cannot(f"{where} is {ours}", f"The nearest it has is {theirs}.")
    return found


def _differences(a: Any, b: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two trees of dataclasses and tuples differ: a path, and what stands there in each."""
    if a == b:
        return
    if type(a) is type(b) and is_dataclass(a):
        for field in fields(a):
            yield from _differences(getattr(a, field.name), getattr(b, field.name), f"{where}.{field.name}".lstrip("."))
    elif isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        for n, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _differences(x, y, f"{where}[{n}]")
    else:
        yield where, a, b


def _cannot(why: str, more: str = "") -> ConfigError:
    return ConfigError(
        f"LitGPT cannot express this model: {why}.", more, "Write it in another form, as Hugging Face's, instead."
    )
