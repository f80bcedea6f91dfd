"""Gemma 1, 2 and 3: norms stored minus one, scaled embeddings, soft caps, local and global layers."""

from __future__ import annotations

import math
from dataclasses import replace

from lathe.families.keys import Keys
from lathe.families.llama import attention, context, depth, model, norm, windows
from lathe.families.positions import turned
from lathe.model.spec import Attention, Gated, Layer, QKNorm, Rope, Spec


def gemma(keys: Keys) -> Spec:
    # The first files say "gelu" and were trained with its tanh form; `hidden_activation` came later to say so.
    keys.expect("hidden_act", "gelu", "gelu_pytorch_tanh")
    layer = Layer(attention(keys, head_dim=256), _gated(keys), norm(keys, offset=1.0))
    return _model(keys, [layer] * depth(keys))


def gemma2(keys: Keys) -> Spec:
    keys.ignore("sliding_window_size", "hidden_act")
    part = attention(
        keys, head_dim=256, scale=_scale(keys), softcap=keys.real_or_none("attn_logit_softcapping", 50.0, above=0)
    )
    window = keys.size("sliding_window", 4096)
    seen = windows(keys, [i % 2 == 0 for i in range(depth(keys))], window)
    cap = keys.real_or_none("final_logit_softcapping", 30.0, above=0)
    return _model(keys, [_sandwich(keys, replace(part, window=w)) for w in seen], logit_softcap=cap)


def gemma3(keys: Keys) -> Spec:
    """Five local layers to one global, which turn at different speeds."""
    keys.ignore("_sliding_window_pattern")
    keys.expect("attn_logit_softcapping", None)  # always null, and transformers would not apply it
    every = keys.size("sliding_window_pattern", 6)
    seen = windows(keys, [(i + 1) % every != 0 for i in range(depth(keys))], keys.size("sliding_window", 4096))
    far, near = _ropes(keys)
    part = attention(
        keys,
        head_dim=256,
        scale=_scale(keys),
        qk_norm=QKNorm(norm(keys, offset=1.0)),
    )
    layers = [_sandwich(keys, replace(part, window=w, rope=near if w else far)) for w in seen]
    return _model(keys, layers, logit_softcap=keys.real_or_none("final_logit_softcapping", above=0))


def _ropes(keys: Keys) -> tuple[Rope, Rope]:
    """The global and the local rotation, in either dialect."""
    channels = keys.size("head_dim", 256)
    new = keys.part("rope_parameters")
    far, near = new.part("full_attention"), new.part("sliding_attention")
    far_base = far.real("rope_theta", keys.real("rope_theta", 1e6, above=1), above=1)
    near_base = near.real("rope_theta", keys.real("rope_local_base_freq", 1e4, above=1), above=1)
    far = far if far.config else keys.part("rope_scaling")
    return (
        turned(keys, far, channels, context(keys), far_base),
        turned(keys, near, channels, context(keys), near_base),
    )


def _gated(keys: Keys) -> Gated:
    return Gated(keys.size("intermediate_size"), keys.activation("hidden_activation", "gelu_pytorch_tanh"))


def _sandwich(keys: Keys, part: Attention) -> Layer:
    return Layer(part, _gated(keys), norm(keys, offset=1.0), order="sandwich")


def _scale(keys: Keys) -> float:
    return keys.real("query_pre_attn_scalar", 256, above=0) ** -0.5


def _model(keys: Keys, layers: list[Layer], **rest: float | None) -> Spec:
    keys.expect("use_bidirectional_attention", False)
    width = keys.size("hidden_size")
    return model(keys, layers, norm(keys, offset=1.0), tied=True, embed_scale=math.sqrt(width), **rest)
