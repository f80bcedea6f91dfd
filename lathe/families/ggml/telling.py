"""A Spec's parts become the metadata that llama.cpp reads, and the few tensors that are settings: `config` backwards.

It is derived from the parts, not per family. What a lineage has no key for shows when it is read back: `config` then
gives another Spec (`check`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lathe.errors import ConfigError
from lathe.families import read
from lathe.families.ggml.header import FREQUENCIES, LONG, SCORES, SHORT, Facts
from lathe.families.ggml.lineages import config as meaning
from lathe.families.ggml.lineages import find
from lathe.families.ggml.scaling import divisors
from lathe.families.positions import mscale
from lathe.model.spec import (
    Attention,
    Dynamic,
    Experts,
    LatentAttention,
    LayerNorm,
    Linear,
    Llama3,
    LongRope,
    Mixer,
    Rope,
    SparseMixer,
    Spec,
    Yarn,
)

TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding"}


def metadata(config: Mapping[str, Any], spec: Spec) -> Facts:
    """What a GGUF file says of a model, its tokenizer apart. config: in Hugging Face's words.

    Raises:
        ConfigError: llama.cpp has no such architecture, or no word for the way positions are stretched.
    """
    arch, lineage = find(config)
    own = {
        "vocab_size": spec.vocab,
        "context_length": spec.context,
        "embedding_length": spec.width,
        "block_count": len(spec.layers),
        **_mlps(config, spec),
        **_heads(spec.layers[0].mixer),
        **_norm(spec),
        **_windows(spec),
        **_rope(_main(spec), spec.context),
        **_bounds(spec),
        **lineage.tell(config, spec),
    }
    ids = {name: config.get(f"{token}_token_id") for token, name in TOKENS.items()}
    return {
        "general.architecture": arch,
        "general.type": "model",
        **{f"{arch}.{key}": value for key, value in own.items() if value is not None},
        **{f"tokenizer.ggml.{name}_token_id": n for name, n in ids.items() if type(n) is int and n >= 0},
    }


def settings(spec: Spec) -> dict[str, tuple[float, ...]]:
    """The tensors, by name, that are settings: divisors of the rotary frequencies, float32."""
    match _main(spec):
        case Rope(base, channels, Llama3() as scaling):
            return {FREQUENCIES: divisors(scaling, base, channels // 2)}
        case Rope(scaling=LongRope(short, long)):
            return {LONG: long, SHORT: short}
    return {}


def check(spec: Spec, metadata: Facts, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Whether what a file would say, read again, describes the same model; a number is what float32 makes of it.

    metadata: the file's, and the values of its settings under their own names; shapes: of all its tensors.

    Raises:
        ConfigError: GGUF has no word for something in the model.
    """
    try:
        found = read(meaning({name: _single(value) for name, value in metadata.items()}, shapes))
    except ConfigError as error:
        raise ConfigError(f"GGUF has no word for something in this model: {error}") from error
    if difference := _difference(_single(asdict(found)), _single(asdict(spec))):
        raise ConfigError(
            f"GGUF has no word for something in this model: {difference}.",
            fix="Write it in Hugging Face's form.",
        )


def _single(value: Any) -> Any:
    """Every real number in it as float32 has it."""
    if isinstance(value, float):
        return struct.unpack("<f", struct.pack("<f", value))[0]
    if isinstance(value, dict):
        return {key: _single(part) for key, part in value.items()}
    return [_single(part) for part in value] if isinstance(value, (list, tuple)) else value


def _difference(found: Any, wanted: Any, path: str = "") -> str:
    """Where two nested values differ first, in words; nothing where they do not."""
    if isinstance(found, dict) and isinstance(wanted, dict) and found.keys() == wanted.keys():
        parts = ((key, found[key], wanted[key]) for key in found)
    elif isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        parts = ((str(n), *pair) for n, pair in enumerate(zip(found, wanted, strict=True)))
    else:
        return "" if found == wanted else f"{path.lstrip('.')} would be {found} and should be {wanted}"
    return next(filter(None, (_difference(f, w, f"{path}.{key}") for key, f, w in parts)), "")


def _mlps(config: Mapping[str, Any], spec: Spec) -> Facts:
    mixtures = [layer.mlp for layer in spec.layers if isinstance(layer.mlp, Experts)]
    dense = [layer.mlp for layer in spec.layers if not isinstance(layer.mlp, Experts)]
    if not mixtures:
        return {"feed_forward_length": dense[0].width}
    each, router = mixtures[0].each, mixtures[0].router
    found: Facts = {
        "feed_forward_length": dense[0].width if dense else config.get("intermediate_size", each.width),
        "expert_feed_forward_length": each.width,
        "expert_count": router.count,
        "expert_used_count": router.chosen,
    }
    if isinstance(router, SparseMixer):  # llama.cpp has no words for how they are weighed
        return found
    return found | {
        "expert_gating_func": SCORES[router.score],
        "expert_weights_norm": router.renormalise,
        "expert_weights_scale": router.scale if router.scale != 1 else None,
    }


def _heads(mixer: Mixer) -> Facts:
    if isinstance(mixer, Attention):
        return {
            "attention.head_count": mixer.heads,
            "attention.head_count_kv": mixer.kv_heads,
            "attention.key_length": mixer.channels,
            "attention.value_length": mixer.channels,
        }
    return _latent(mixer)


def _latent(mixer: LatentAttention) -> Facts:
    """The latent counts as the one key of all heads."""
    return {
        "attention.head_count": mixer.heads,
        "attention.head_count_kv": 1,
        "attention.key_length": mixer.cache.key_channels,
        "attention.value_length": mixer.cache.value_channels,
        "attention.key_length_mla": mixer.plain_channels + mixer.rope.channels,
        "attention.value_length_mla": mixer.value_channels,
        "attention.q_lora_rank": mixer.q_rank,
        "attention.kv_lora_rank": mixer.kv_rank,
    }


def _norm(spec: Spec) -> Facts:
    name = "layer_norm_epsilon" if isinstance(spec.norm, LayerNorm) else "layer_norm_rms_epsilon"
    return {f"attention.{name}": spec.norm.eps}


def _windows(spec: Spec) -> Facts:
    """Which layers see a window, and how fast positions turn there if it is not as elsewhere."""
    windows = [layer.mixer.window for layer in spec.layers]
    sizes = {window for window in windows if window is not None}
    if not sizes:
        return {}
    found: Facts = {"attention.sliding_window": min(sizes)}
    if len(set(windows)) > 1:
        found["attention.sliding_window_pattern"] = [window is not None for window in windows]
        local = next((la.mixer.rope for la in spec.layers if la.mixer.window and la.mixer.rope), None)
        main = _main(spec)
        if local and main and local.base != main.base:
            found["rope.freq_base_swa"] = local.base
    return found


def _main(spec: Spec) -> Rope | None:
    """How positions turn where there is no window, or, if they turn nowhere there, where there is one."""
    layers = sorted(spec.layers, key=lambda layer: layer.mixer.window is not None)
    return next((layer.mixer.rope for layer in layers if layer.mixer.rope), None)


def _rope(rope: Rope | None, context: int) -> Facts:
    if rope is None:
        return {}
    found: Facts = {"rope.dimension_count": rope.channels, "rope.freq_base": rope.base}
    match rope.scaling:
        case Linear(factor):
            found |= {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
        case Llama3(original=original):  # the rest is in the tensor
            found |= {"rope.scaling.original_context_length": original}
        case LongRope(original=original, attention=attention):
            found |= {
                "rope.scaling.type": "longrope",
                "rope.scaling.original_context_length": original,
                "rope.scaling.attn_factor": attention,
            }
        case Yarn() as yarn:
            usual = math.isclose(yarn.attention, mscale(yarn.factor))
            found |= {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": yarn.factor,
                "rope.scaling.original_context_length": yarn.original,
                "rope.scaling.yarn_attn_factor": None if usual else yarn.attention,
                "rope.scaling.yarn_beta_fast": yarn.fast,
                "rope.scaling.yarn_beta_slow": yarn.slow,
            }
        case Dynamic():
            raise ConfigError(
                "GGUF has no word for rotary positions that are stretched as the sequence grows.",
                fix='Remove "rope_scaling" from config.json if sequences stay within the first training\'s length.',
            )
    return found


def _bounds(spec: Spec) -> Facts:
    mixer = spec.layers[0].mixer
    return {
        "attn_logit_softcapping": mixer.softcap,
        "attention.clamp_kqv": mixer.clip if isinstance(mixer, Attention) else None,
        "final_logit_softcapping": spec.logit_softcap,
    }
