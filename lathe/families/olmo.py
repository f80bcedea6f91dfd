"""OLMo 1: LayerNorm without weights, projections clipped. OLMo 2: norms after the mixer and the MLP instead of before,
queries and keys normed over the whole row. OLMo 3: the same with windows in three of four layers."""

from __future__ import annotations

from dataclasses import replace

from lathe.families.keys import Keys
from lathe.families.llama import attention, context, depth, gated, model, norm, windows
from lathe.families.positions import turned
from lathe.model.spec import Layer, LayerNorm, QKNorm, Rope, Spec


def olmo(keys: Keys) -> Spec:
    norm = LayerNorm(1e-5, affine=False)
    mixer = attention(keys, clip=keys.real_or_none("clip_qkv", above=0))
    return model(keys, [Layer(mixer, gated(keys), norm)] * depth(keys), norm)


def olmo2(keys: Keys) -> Spec:
    mixer = attention(keys, qk_norm=QKNorm(norm(keys, 1e-5), over="row"))
    layer = Layer(mixer, gated(keys), norm(keys, 1e-5), order="post")
    return model(keys, [layer] * depth(keys), norm(keys, 1e-5))


def olmo3(keys: Keys) -> Spec:
    """Only where there is no window are positions stretched."""
    window = keys.size_or_none("sliding_window", 4096)
    seen = windows(keys, [(i + 1) % 4 != 0 for i in range(depth(keys))], window)
    far = attention(keys, turn=_far, qk_norm=QKNorm(norm(keys, 1e-5), over="row"))
    near = _near(keys, far.channels)
    mixers = [replace(far, window=w, rope=near if w else far.rope) for w in seen]
    return model(keys, [Layer(part, gated(keys), norm(keys, 1e-5), "post") for part in mixers], norm(keys, 1e-5))


def _far(keys: Keys, channels: int) -> Rope:
    return _turn(keys, channels, "full_attention", keys.part("rope_scaling"))


def _near(keys: Keys, channels: int) -> Rope:
    return _turn(keys, channels, "sliding_attention", Keys({}))


def _turn(keys: Keys, channels: int, kind: str, old: Keys) -> Rope:
    """What transformers 5 says of a kind of layer, or `old` and the one `rope_theta` of transformers 4."""
    new = keys.part("rope_parameters").part(kind)
    base = new.real("rope_theta", keys.real("rope_theta", 500_000.0, above=1), above=1)
    return turned(keys, new if new.config else old, channels, context(keys), base)
