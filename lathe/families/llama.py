"""The Llama lineage, whose names on disk are our names in memory, and the parts that other families are made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lathe.families.keys import Keys
from lathe.families.positions import rope
from lathe.model.spec import Attention, Experts, Gated, Layer, Norm, RMSNorm, Rope, Router, Spec
from lathe.weights.rules import Rename, Rule, Stack


def attention(
    keys: Keys,
    *,
    head_dim: int | None = None,
    base: float = 10_000.0,
    partial: float = 1.0,
    interleaved: bool = False,
    turn: Callable[[Keys, int], Rope] | None = None,
    **changes: Any,
) -> Attention:
    """Grouped-query attention from the usual keys. `head_dim`, `base`, `partial`: what the family takes for granted.
    `turn`: how a head of so many channels turns, where that is said in other keys."""
    heads = keys.size("num_attention_heads")
    kv_heads = keys.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise keys.wrong("num_key_value_heads", kv_heads, f"a divisor of the {heads} attention heads")
    channels = keys.size("head_dim", head_dim or keys.size("hidden_size") // heads)
    bias = keys.flag("attention_bias", False)
    part = Attention(
        heads=heads,
        kv_heads=kv_heads,
        channels=channels,
        scale=channels**-0.5,
        rope=turn(keys, channels)
        if turn
        else rope(keys, channels, context(keys), base=base, partial=partial, interleaved=interleaved),
        qkv_bias=bias,
        out_bias=bias,
    )
    return replace(part, **changes)


def gated(keys: Keys, width: str = "intermediate_size", act: str = "silu") -> Gated:
    return Gated(keys.size(width), keys.activation("hidden_act", act), keys.flag("mlp_bias", False))


def norm(keys: Keys, eps: float = 1e-6, offset: float = 0.0) -> RMSNorm:
    return RMSNorm(keys.real("rms_norm_eps", eps), offset)


def context(keys: Keys, default: int = 2048) -> int:
    return keys.size("max_position_embeddings", default)


def model(keys: Keys, layers: Sequence[Layer], norm: Norm, *, tied: bool = False, **rest: Any) -> Spec:
    return Spec(
        vocab=keys.size("vocab_size"),
        width=keys.size("hidden_size"),
        layers=tuple(layers),
        norm=norm,
        context=context(keys),
        tied=keys.flag("tie_word_embeddings", tied),
        **rest,
    )


def depth(keys: Keys) -> int:
    return keys.size("num_hidden_layers")


def windows(keys: Keys, default: Sequence[bool], window: int | None) -> list[int | None]:
    """Each layer's sliding window, from `layer_types` or, where that is missing, from `default` (True: sliding)."""
    kinds = ("sliding_attention", "full_attention")
    named = keys.choices("layer_types", kinds, len(default), [kinds[0] if slides else kinds[1] for slides in default])
    return [window if kind == kinds[0] else None for kind in named]


def llama(keys: Keys) -> Spec:
    keys.expect("rope_interleaved", False)  # SmolLM says so, and that it is a Llama
    keys.ignore("is_llama_config")
    layer = Layer(attention(keys), gated(keys), norm(keys))
    return model(keys, [layer] * depth(keys), norm(keys))


def mistral(keys: Keys) -> Spec:
    window = keys.size_or_none("sliding_window", 4096)
    layer = Layer(attention(keys, window=window), gated(keys), norm(keys))
    return model(keys, [layer] * depth(keys), norm(keys))


def mixtral(keys: Keys) -> Spec:
    keys.ignore("router_aux_loss_coef", "output_router_logits", "router_jitter_noise")
    keys.expect("mlp_bias", False)
    count = keys.size("num_local_experts", 8)
    router = Router(count, keys.size("num_experts_per_tok", 2, most=count))
    mixer = attention(keys, base=1e6, window=keys.size_or_none("sliding_window"))
    layer = Layer(mixer, Experts(gated(keys), router), norm(keys, 1e-5))
    return model(keys, [layer] * depth(keys), norm(keys, 1e-5))


def mixtral_rules(spec: Spec) -> Sequence[Rule]:
    disk, memory = "model.layers.{i}.block_sparse_moe.", "model.layers.{i}.mlp."
    names = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    return [
        Rename(disk + "gate.weight", memory + "gate.weight"),
        *(
            Stack(disk + f"experts.{{e}}.{w}.weight", memory + f"experts.{name}.weight", experts(spec))
            for w, name in names.items()
        ),
    ]


def experts(spec: Spec) -> int:
    """How many experts the mixtures of a model have; 0 where it has no mixture."""
    return next((layer.mlp.router.count for layer in spec.layers if isinstance(layer.mlp, Experts)), 0)


def smollm3(keys: Keys) -> Spec:
    """Llama without rotary positions in some layers (arXiv:2501.18795)."""
    keys.ignore("max_window_layers")
    layers, every = depth(keys), keys.size("no_rope_layer_interval", 4)
    turns = keys.numbers("no_rope_layers", [int((i + 1) % every != 0) for i in range(layers)], layers)  # 1: has rope
    slides = keys.flag("use_sliding_window", False)
    window = keys.size_or_none("sliding_window") if slides else None
    seen = windows(keys, [bool(window) and not t for t in turns], window)
    part = attention(keys, base=2e6)
    parts = [replace(part, rope=part.rope if t else None, window=w) for t, w in zip(turns, seen, strict=True)]
    return model(keys, [Layer(p, gated(keys), norm(keys)) for p in parts], norm(keys), tied=True)


def granite(keys: Keys) -> Spec:
    """Llama with a multiplier at each place where signals add up."""
    mixer = attention(keys, scale=keys.real("attention_multiplier", 1.0))
    layer = Layer(mixer, gated(keys), norm(keys), residual=keys.real("residual_multiplier", 1.0))
    embed, logit = keys.real("embedding_multiplier", 1.0), 1 / keys.real("logits_scaling", 1.0, above=0)
    return model(keys, [layer] * depth(keys), norm(keys), embed_scale=embed, logit_scale=logit)
