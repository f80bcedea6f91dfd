"""Positions become angles, and angles turn queries and keys (rotary embedding, Su et al., arXiv:2104.09864)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lathe.model import gpu, gradients
from lathe.model.layout import Layout
from lathe.model.spec import Dynamic, Linear, Llama3, LongRope, Rope, Yarn

Angles = tuple[Tensor, Tensor]  # cos and sin of each channel, (T, 1, channels), float32; see gradients.turn


def angles(rope: Rope, layout: Layout, speed: Tensor | None = None) -> Angles:
    """cos and sin of every token's angles; made once per ribbon for all layers that turn alike.

    speed: `frequencies`, where somebody has them already, of a rope that does not go by extent.
    """
    return layout.once(rope, lambda: _angles(rope, layout, speed))


def _angles(rope: Rope, layout: Layout, speed: Tensor | None) -> Angles:
    device = layout.positions.device
    if not by_extent(rope):
        return turned(rope, layout.positions, frequencies(rope, 0, device) if speed is None else speed)
    per_sequence = torch.stack([frequencies(rope, extent, device) for extent in layout.extents])
    lengths = torch.tensor(layout.lengths, device=device)
    return turned(rope, layout.positions, per_sequence.repeat_interleave(lengths, dim=0))  # T C/2


def by_extent(rope: Rope) -> bool:
    """Whether a sequence's angles go by how long it may become."""
    return isinstance(rope.scaling, Dynamic | LongRope)


def turned(rope: Rope, positions: Tensor, speed: Tensor) -> Angles:
    """cos and sin of the angles at these positions. positions: T. speed: radians per position, C/2 or T C/2."""
    turn = positions[:, None].float() * speed
    factor = rope.scaling.attention if isinstance(rope.scaling, (Yarn, LongRope)) else 1.0
    cos, sin = turn.cos()[:, None] * factor, turn.sin()[:, None] * factor
    if rope.interleaved:
        return cos.repeat_interleave(2, dim=-1), torch.stack((-sin, sin), dim=-1).flatten(-2)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(angles: Angles, rope: Rope, *xs: Tensor) -> list[Tensor]:
    """Turn the first `rope.channels` of every head of one or two x: T H C. Computed in float32, rounded once to x's
    dtype."""
    if gpu.able(*xs, *angles):
        from lathe.model.gpu import stream

        return stream.turn(*angles, rope.interleaved, *xs)
    return [_rotate(x, angles, rope) for x in xs]


def _rotate(x: Tensor, angles: Angles, rope: Rope) -> Tensor:
    turned, rest = x[..., : rope.channels], x[..., rope.channels :]
    y = gradients.turn(turned, *angles, rope.interleaved)
    return torch.cat((y, rest), dim=-1) if rest.shape[-1] else y


def frequencies(rope: Rope, extent: int, device: torch.device | str = "cpu") -> Tensor:
    """Radians per position for each pair of channels, float32, of a sequence that may become `extent` tokens long."""
    base, n, scaling = rope.base, rope.channels, rope.scaling
    if isinstance(scaling, Dynamic):
        length = max(extent, scaling.original)
        base = base * (scaling.factor * length / scaling.original - (scaling.factor - 1)) ** (n / (n - 2))
    plain = 1.0 / base ** (torch.arange(0, n, 2, device=device).float() / n)  # C/2
    match scaling:
        case None | Dynamic():
            return plain
        case Linear():
            return plain / scaling.factor
        case Llama3():
            return _llama3(plain, scaling)
        case Yarn():
            return _yarn(plain, rope, scaling)
        case LongRope():
            divisor = scaling.long if extent > scaling.original else scaling.short
            return plain / torch.tensor(divisor, device=device)


def _llama3(plain: Tensor, s: Llama3) -> Tensor:
    wavelength = 2 * math.pi / plain
    # 0 where the wavelength is longer than original / low (interpolate), 1 where shorter than original / high (keep).
    keep = ((s.original / wavelength - s.low) / max(s.high - s.low, 1e-6)).clamp(0, 1)  # Llama 4 has no ramp
    return plain / s.factor * (1 - keep) + plain * keep


def _yarn(plain: Tensor, rope: Rope, s: Yarn) -> Tensor:
    def channel(turns: float) -> float:
        """The pair that makes `turns` whole turns over the original context."""
        return rope.channels * math.log(s.original / (turns * 2 * math.pi)) / (2 * math.log(rope.base))

    low, high = channel(s.fast), channel(s.slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.channels - 1)
    ramp = (torch.arange(len(plain), device=plain.device).float() - low) / max(high - low, 0.001)
    interpolate = ramp.clamp(0, 1)  # fast pairs (first) keep their speed, slow ones (last) are divided
    return plain / s.factor * interpolate + plain * (1 - interpolate)
