"""Rows of numbers become codes of 4 or 8 bits with scales, and come back; one pair of functions for each way.

To codes: n D, of any floating-point type, gives n codes and n scales, float32 or float16. From codes: these and D give
... D, float32. What the ways are is said in `kinds`; for some a CPU has kernels (`native.encoding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from lathe.model.native import encoding
from lathe.transforms import hqq
from lathe.transforms.hqq import nonzero

Table = tuple[float, ...]
BLOCK, GROUP = 64, 32
ENDS = (-8.0, -7.3, -6.6)  # what the largest number of a group may become in 4 bits
# Appendix E of the paper; rounded to the nearest, of two as near to the lower.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# By their codes: a sign, two bits of exponent, one of mantissa, but that the least of all is not zero's half.
FP4 = tuple(sign * value / 12 for sign in (1, -1) for value in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))
LARGEST8 = 448.0  # of the floats of 8 bits


def to_table(values: Table, rows: Tensor) -> tuple[Tensor, Tensor]:
    """n D to n D/2 codes, two in a byte, the first in its upper half, and n D/64 largest sizes."""
    blocks = F.pad(rows.float(), (0, -rows.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    largest = blocks.abs().amax(-1)
    shares = blocks / nonzero(largest)[..., None]
    ordered = sorted({value: code for code, value in reversed([*enumerate(values)])}.items())  # of two zeros the first
    codes = torch.zeros(shares.shape, dtype=torch.uint8, device=rows.device)
    for (below, _), (above, _) in pairwise(ordered):
        codes += shares > (below + above) / 2  # sooner than a search
    if values is not NF4:  # whose codes are in the order of what they stand for
        codes = torch.tensor([code for _, code in ordered], dtype=torch.uint8, device=rows.device)[codes.int()]
    return halves(codes.flatten(1)), largest


def from_table(values: Table, codes: Tensor, scales: Tensor, inputs: int) -> Tensor:
    both = pairs(values, codes.device).index_select(0, codes.flatten().int()).view(torch.float32)
    return (both.view(*scales.shape, BLOCK) * scales[..., None]).flatten(-2)[..., :inputs]


@cache
def pairs(table: Table, device: torch.device) -> Tensor:
    """The two values that each byte stands for, together as one of 64 bits, which is looked up soonest."""
    with torch.inference_mode(False):
        values = torch.tensor(table, device=device)
        return torch.stack((values.repeat_interleave(16), values.repeat(16)), 1).view(torch.int64).flatten()


def to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    if made := encoding.int8(rows, grouped=False):
        return made
    rows = rows.float()
    scales = rows.abs().amax(1, keepdim=True) / 127
    return (rows / nonzero(scales)).round().to(torch.int8), scales


def from_int8(codes: Tensor, scales: Tensor, inputs: int) -> Tensor:
    return codes * scales


def to_int8_groups(rows: Tensor) -> tuple[Tensor, Tensor]:
    if made := encoding.int8(rows, grouped=True):
        return made
    groups = F.pad(rows.float(), (0, -rows.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    scales = (groups.abs().amax(-1) / 127).to(torch.float16)
    codes = (groups / nonzero(scales.float())[..., None]).round().clamp(-127, 127)
    return codes.to(torch.int8).flatten(1)[:, : rows.shape[1]], scales


def from_int8_groups(codes: Tensor, scales: Tensor, inputs: int) -> Tensor:
    return codes * scales.float().repeat_interleave(GROUP, -1)[..., :inputs]


def to_fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    rows = rows.float()
    scales = rows.abs().amax(1, keepdim=True) / LARGEST8
    return (rows / nonzero(scales)).to(torch.float8_e4m3fn), scales


def from_fp8(codes: Tensor, scales: Tensor, inputs: int) -> Tensor:
    return codes.float() * scales


def to_int4(rows: Tensor) -> tuple[Tensor, Tensor]:
    """n D to n D/2 codes, 8 more than the whole numbers, two in a byte as in nf4, and n D/32 scales."""
    if made := encoding.int4(rows, ENDS):
        return made
    groups = F.pad(rows.float(), (0, -rows.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    scales = int4_scales(groups)
    return halves(int4_codes(groups, scales[..., None]).flatten(1)), scales


def int4_codes(groups: Tensor, scales: Tensor) -> Tensor:
    """The codes nearest to numbers, uint8: whole numbers from -8 to 7, and 8 more."""
    return ((groups / nonzero(scales.float())).round().clamp(-8, 7) + 8).to(torch.uint8)


def halves(codes: Tensor) -> Tensor:
    """Codes of 4 bits two in a byte, the first in its upper half: ... 2n -> ... n."""
    return codes[..., ::2] << 4 | codes[..., 1::2]


def int4_scales(groups: Tensor, ends: Sequence[float] = ENDS) -> Tensor:
    """The scale of each group of numbers, float16: ... 32 -> ...

    The largest number becomes an end: of the scales that do so, each fitted to its whole numbers (least squares), the
    best is taken.
    """
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    largest = torch.where(-low > high, low, high)
    best = torch.full_like(largest, float("inf"))
    scales = torch.zeros_like(largest)
    for end in ends:
        codes = (groups / nonzero(largest / end)).round().clamp(-8, 7)
        fitted = (groups * codes).sum(-1, keepdim=True) / nonzero(codes.square().sum(-1, keepdim=True))
        error = (groups - fitted * codes).square().sum(-1, keepdim=True)
        scales, best = torch.where(error < best, fitted, scales), torch.minimum(best, error)
    return scales[..., 0].to(torch.float16)


def from_int4(codes: Tensor, scales: Tensor, inputs: int) -> Tensor:
    return from_int4_with_zeros(codes, scales, scales.new_tensor([8]), inputs)


def to_int4_with_zeros(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """n D to n D/2 codes as in int4, n D/32 scales, and as many zero points, uint8."""
    codes, scales, zeros = hqq.fitted(F.pad(rows.float(), (0, -rows.shape[1] % GROUP)).unflatten(1, (-1, GROUP)))
    return halves(codes.flatten(1)), scales, zeros


def from_int4_with_zeros(codes: Tensor, scales: Tensor, zeros: Tensor, inputs: int) -> Tensor:
    whole = torch.stack((codes >> 4, codes & 15), dim=-1).flatten(-2).float().unflatten(-1, (-1, GROUP))
    return ((whole - zeros.float()[..., None]) * scales.float()[..., None]).flatten(-2)[..., :inputs]
