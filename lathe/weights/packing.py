"""float32 values become the blocks of ggml's quantized types; the inverse of blocks.py, as near as the bits allow.

Each function takes N rows of 32 values (or 256, the K types) and gives their N blocks as raw bytes. The types of 32
values round to a grid that their extremes fix, as ggml does bit for bit; the K types search for the grid of least
squared error, as ggml does too, so nearly all their blocks are its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def _raw(value: Tensor) -> Tensor:
    """Half-precision numbers as bytes: N S -> N 2S."""
    return value.half().contiguous().view(torch.uint8)


def _joined(q: Tensor, shifts: Sequence[int], run: int) -> Tensor:
    """Small numbers into bytes, where `blocks._bits` finds them with the same arguments: N B*shifts -> N B."""
    by = torch.tensor(shifts, dtype=torch.uint8)[:, None]
    return (q.to(torch.uint8).unflatten(1, (-1, len(shifts), run)) << by).sum(2, dtype=torch.uint8).flatten(1)


def _inverse(d: Tensor) -> Tensor:
    """1 / d, and 0 where there is none."""
    inverse = 1 / d
    return inverse.where(inverse.isfinite(), 0)


def _extreme(x: Tensor) -> Tensor:
    """The value farthest from zero, the first of those, with its sign: ... B -> ... 1."""
    return x.gather(-1, x.abs().argmax(-1, keepdim=True))


# ---- 32 values, rounded as ggml does --------------------------------------------------------------------------------
def q8_0(x: Tensor) -> Tensor:
    d = x.abs().amax(1, keepdim=True) / 127
    scaled = x * _inverse(d)
    size = scaled.abs()
    whole = size.floor()
    rounded = scaled.sign() * (whole + (2 * (size - whole)).floor())  # halves go away from zero
    return torch.cat((_raw(d), rounded.to(torch.int8).view(torch.uint8)), 1)


def _symmetric(x: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """A scale that maps the extreme value to -half, and the numbers 0 to 2 half - 1."""
    d = _extreme(x) / -half
    return d, (x * _inverse(d) + (half + 0.5)).trunc().clamp(0, 2 * half - 1)


def _ranged(x: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """A scale and a minimum that map the least value to 0 and the largest to `top`, and the numbers."""
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    d = (high - low) / top
    return d, low, ((x - low) * _inverse(d) + 0.5).trunc().clamp(0, top)


def _nibbles(q: Tensor) -> Tensor:
    return _joined(q.to(torch.uint8) & 15, (0, 4), 16)


def _fifths(q: Tensor) -> Tensor:
    return _joined(q.to(torch.uint8) >> 4, range(8), 1)


def q4_0(x: Tensor) -> Tensor:
    d, q = _symmetric(x, 8)
    return torch.cat((_raw(d), _nibbles(q)), 1)


def q4_1(x: Tensor) -> Tensor:
    d, low, q = _ranged(x, 15)
    return torch.cat((_raw(d), _raw(low), _nibbles(q)), 1)


def q5_0(x: Tensor) -> Tensor:
    d, q = _symmetric(x, 16)
    return torch.cat((_raw(d), _fifths(q), _nibbles(q)), 1)


def q5_1(x: Tensor) -> Tensor:
    d, low, q = _ranged(x, 31)
    return torch.cat((_raw(d), _raw(low), _fifths(q), _nibbles(q)), 1)


# ---- 256 values, in runs with scales of their own -------------------------------------------------------------------
def _fit(x: Tensor, top: int, stretches: Iterable[float]) -> tuple[Tensor, Tensor]:
    """The scale d and minimum m, neither negative, with which d * q - m is nearest to a run of values: B M -> M, M.

    Tries grids from the best minimum so far to the largest value, a little wider and narrower; for each, the best line
    through the numbers they round to is a weighted least-squares fit in two unknowns. Large values weigh more.
    """
    weight = x.square().mean(0).sqrt() + x.abs()
    high, best_m = x.amax(0), -x.amin(0).clamp(max=0)
    sum_w, sum_x = weight.sum(0), (weight * x).sum(0)
    best_d = (high + best_m) / top
    best = (weight * (best_d * _numbers(x, best_d, best_m, top) - best_m - x).square()).sum(0)
    for stretch in stretches:
        q = ((x + best_m) * ((top + stretch) * _inverse(high + best_m))).round_().clamp_(0, top)
        wq = weight * q
        sum_q, sum_qq, sum_xq = wq.sum(0), (wq * q).sum(0), (wq * x).sum(0)
        determinant = sum_w * sum_qq - sum_q.square()
        d = (sum_w * sum_xq - sum_x * sum_q) / determinant
        m = (sum_q * sum_xq - sum_qq * sum_x) / determinant
        alone = m < 0  # a minimum above zero has no bits: then the scale is fitted alone
        d, m = torch.where(alone, sum_xq / sum_qq, d), m.clamp(min=0)
        error = (q.mul_(d).sub_(m).sub_(x).square_().mul_(weight)).sum(0)
        better = (determinant > 0) & (error < best)  # false for every NaN
        best, best_d, best_m = error.where(better, best), d.where(better, best_d), m.where(better, best_m)
    return best_d, best_m


def _numbers(x: Tensor, d: Tensor, m: Tensor, top: int) -> Tensor:
    return ((x + m) * _inverse(d)).round().clamp(0, top)


def _runs(x: Tensor, length: int) -> Tensor:
    """Runs of values as columns, which are summed several at a time: N S*B -> B N*S."""
    return x.view(-1, length).T.contiguous()


def _shared(scales: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Scales, none negative, as whole numbers up to `top` of one half-precision unit: N S -> N 1, N S."""
    largest = scales.amax(1, keepdim=True)
    return (largest / top).half().float(), (scales * (top * _inverse(largest))).round().clamp(0, top)


def _with_minima(x: Tensor, top: int, stretches: Iterable[float]) -> tuple[Tensor, Tensor]:
    """The head of a Q4_K or Q5_K block (d 2 | m 2 | scales and minima 12), and its 256 numbers up to `top`."""
    runs = _runs(x, 32)
    d, m = (part.view(-1, 8) for part in _fit(runs, top, stretches))
    unit_d, scales = _shared(d, 63)
    unit_m, minima = _shared(m, 63)
    q = _numbers(runs, (unit_d * scales).flatten(), (unit_m * minima).flatten(), top).T.reshape(x.shape)
    scales, minima = scales.to(torch.uint8), minima.to(torch.uint8)
    low, high = (scales[:, :4], minima[:, :4]), (scales[:, 4:], minima[:, 4:])
    packed = [first | second >> 4 << 6 for first, second in zip(low, high, strict=True)]
    halves = high[0] & 15 | high[1] << 4
    return torch.cat((_raw(unit_d), _raw(unit_m), *packed, halves), 1), q.to(torch.uint8)


def q4_k(x: Tensor) -> Tensor:
    head, q = _with_minima(x, 15, [step / 10 for step in range(-10, 11)])
    return torch.cat((head, _joined(q, (0, 4), 32)), 1)


def q5_k(x: Tensor) -> Tensor:
    head, q = _with_minima(x, 31, [step / 10 for step in range(-5, 11)])
    return torch.cat((head, _joined(q >> 4, range(8), 32), _joined(q & 15, (0, 4), 32)), 1)


def q6_k(x: Tensor) -> Tensor:
    """Sixteen runs of 16 values; a scale may be negative, so that the extreme is -32, of which there is no positive."""
    runs = _runs(x, 16)
    extreme, weight = _extreme(x.view(-1, 16)).flatten(), runs.square()
    best = best_d = torch.zeros_like(extreme)
    for step in range(-9, 10):
        q = (runs * (-(32 + step / 10) * _inverse(extreme))).round_().clamp_(-32, 31)
        wq = weight * q
        sum_xq, sum_qq = (wq * runs).sum(0), wq.mul_(q).sum(0)
        d = sum_xq * _inverse(sum_qq)
        gain = d * sum_xq  # how much of the squares of x this scale explains
        better = gain > best
        best, best_d = gain.where(better, best), d.where(better, best_d)
    best_d = best_d.view(-1, 16)
    largest = _extreme(best_d)
    unit = (largest / -128).half().float()
    scales = (best_d * (-128 * _inverse(largest))).round().clamp(-128, 127)
    q = (runs * _inverse(unit * scales).flatten()).round().clamp(-32, 31)
    stored = (q.T.reshape(x.shape) + 32).to(torch.uint8)
    halves, tops = _joined(stored & 15, (0, 4), 64), _joined(stored >> 4, (0, 2, 4, 6), 32)
    return torch.cat((halves, tops, scales.to(torch.int8).view(torch.uint8), _raw(unit)), 1)
