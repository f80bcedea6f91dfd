"""Products of few rows with matrices, as numbers or as codes: each weight is read once, and nothing else costs much.

Up to three matrices that are given the same rows share one launch, and of a gated pair only act(gate) * up is written.
Codes become numbers in registers; how they are laid out is said in `matrix`, what they mean in `transforms.kinds`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from lathe.model.gpu import FEW, PLAIN, capability, power
from lathe.model.gpu.codes import BITS, ROWS, TABLE, coded, tile
from lathe.model.gpu.matrix import LAYOUTS, Matrix
from lathe.model.gpu.stream import ACTS, act

MOST = 16  # rows that are multiplied with numbers; with more of them, PyTorch's products are as fast


@triton.jit
def _rows(
    x, weight, scales, others, magic, row, one, rows, inputs, width, groups, x_row, count,
    layout: tl.constexpr, bits: tl.constexpr, many: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Products of all rows of x with some of a matrix: tall many, float32."""
    if many > 1:
        sums = tl.zeros([tall, many], tl.float32)
        for start in range(0, inputs, wide):
            column = start + tl.arange(0, wide)
            known = (one < count)[None, :] & (column < inputs)[:, None]
            given = tl.load(x + one[None, :] * x_row + column[:, None], known, 0)
            numbers = tile(
                weight, scales, others, magic, row, start, rows, inputs, width, groups, layout, bits, tall, wide
            )
            sums = tl.dot(numbers.to(given.dtype), given, sums, input_precision="ieee")
    elif bits or layout == TABLE:
        sums = coded(
            x, weight, scales, others, magic, row, rows, inputs, width, groups, layout, bits, tall, wide
        )[:, None]  # fmt: skip
    else:
        parts = tl.zeros([tall, wide], tl.float32)
        for start in range(0, inputs, wide):
            column = start + tl.arange(0, wide)
            given = tl.load(x + column, column < inputs, 0).to(tl.float32)
            numbers = tile(
                weight, scales, others, magic, row, start, rows, inputs, width, groups, layout, bits, tall, wide
            )
            parts += numbers * given[None, :]
        sums = tl.sum(parts, 1)[:, None]
    if layout == ROWS:
        sums *= tl.load(scales + row, row < rows, 0)[:, None]
    return sums


@triton.jit(do_not_specialize=["n0", "n1", "n2"])
def _products(
    y, x, w0, s0, o0, b0, w1, s1, o1, b1, w2, s2, o2, b2, n0, n1, n2, inputs, width, groups, magic, x_row, y_row, count,
    layout: tl.constexpr, bits: tl.constexpr, biased: tl.constexpr, kind: tl.constexpr,
    many: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """kind: the activation of a gated pair, or -1."""
    block = tl.program_id(0)
    weight, scales, others, bias, rows, base = w0, s0, o0, b0, n0, 0
    if kind < 0:
        before1, before2 = tl.cdiv(n0, tall), tl.cdiv(n0, tall) + tl.cdiv(n1, tall)
        if block >= before2:
            weight, scales, others, bias, rows, base = w2, s2, o2, b2, n2, n0 + n1
            block -= before2
        elif block >= before1:
            weight, scales, others, bias, rows, base = w1, s1, o1, b1, n1, n0
            block -= before1
    row = (block * tall + tl.arange(0, tall)).to(tl.int64)
    one = tl.program_id(1) * many + tl.arange(0, many)
    sums = _rows(
        x, weight, scales, others, magic, row, one, rows, inputs, width, groups, x_row, count,
        layout, bits, many, tall, wide,
    )  # fmt: skip
    if biased:
        sums += tl.load(bias + row, row < rows, 0).to(tl.float32)[:, None]
    if kind >= 0:
        up = _rows(
            x, w1, s1, o1, magic, row, one, rows, inputs, width, groups, x_row, count, layout, bits, many, tall, wide
        )
        if biased:
            up += tl.load(b1 + row, row < rows, 0).to(tl.float32)[:, None]
        sums = act(sums, kind) * up
    at = one[None, :] * y_row + base + row[:, None]
    tl.store(y + at, sums.to(y.dtype.element_ty), (row < rows)[:, None] & (one < count)[None, :])


def fits(x: Tensor, matrices: Sequence[Matrix]) -> bool:
    """Whether one launch multiplies these: few rows in half precision, with matrices that are alike."""
    first, rows = matrices[0], x.numel() // x.shape[-1]
    if not 0 < rows <= (MOST if first.layout == "numbers" else FEW) or len(matrices) > 3:
        return False
    if x.dtype not in (torch.bfloat16, torch.float16) or not readable(first.weight):
        return False
    for one in matrices:
        alike = one.layout == first.layout and (one.bias is None) == (first.bias is None)
        known = type(one.weight) in PLAIN and one.weight.device == x.device and one.weight.is_contiguous()
        if not (alike and known and (one.layout != "numbers" or one.weight.dtype == x.dtype)):
            return False
    return True


def readable(codes: Tensor) -> bool:
    """Whether a card makes numbers of this type into others: floats of 8 bits are for newer ones."""
    return codes.dtype != torch.float8_e4m3fn or (torch.version.hip is None and capability(codes.device) >= (8, 9))


def product(x: Tensor, matrices: Sequence[Matrix], gated: str | None = None) -> list[Tensor]:
    """x @ weight.T + bias of each of up to three matrices that `fits` knows, side by side in memory. x: ... D.

    gated: an activation of ACTS; then act(the first's) * the second's is the only result.
    """
    inputs = x.shape[-1]
    rows = x.reshape(-1, inputs)
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    first, count = matrices[0], len(rows)
    sizes = [one.weight.shape[0] for one in matrices][: 1 if gated else None]
    y = torch.empty(count, sum(sizes), dtype=x.dtype, device=x.device)
    cut = _cut(count, inputs, sum(sizes), first.layout)
    told = [part for one in matrices for part in one.parts]
    told += first.parts * (3 - len(matrices))
    heights = sizes + [0] * (3 - len(sizes))
    blocks = sum(triton.cdiv(size, cut["tall"]) for size in sizes)
    groups = 0 if first.scales is None else first.scales.shape[-1]
    kind = -1 if gated is None else ACTS.index(gated)
    _products[blocks, triton.cdiv(count, cut["many"])](
        y, rows, *told, *heights, inputs, first.weight.shape[-1], groups, BITS, rows.stride(0), y.stride(0), count,
        LAYOUTS.index(first.layout), _bits(first), first.bias is not None, kind, **cut,
    )  # fmt: skip
    ends = [*accumulate(sizes, initial=0)]
    return [y[:, a:b].view(*x.shape[:-1], b - a) for a, b in pairwise(ends)]


def _bits(matrix: Matrix) -> int:
    """Of the whole numbers that a matrix's codes are, where they can be read as words; else 0."""
    if matrix.layout in ("fours", "zeros"):
        return 4
    return 8 if matrix.weight.dtype == torch.int8 and matrix.weight.shape[-1] % 4 == 0 else 0


def _cut(count: int, inputs: int, outputs: int, layout: str) -> dict[str, int]:
    """How a product is cut: rows of x and of the matrix that a program has, and columns at once.

    As measured on an H100: small programs hide the memory's latency, large ones do less for each number.
    """
    many = 1 if count == 1 else min(max(power(count), 16), 64)
    if many == 1:
        tall, wide, warps, stages = (4, 512, 1, 3) if layout == "table" else (2, 1024, 1, 3)
    elif layout == "numbers" or outputs <= 4096:
        tall, wide, warps, stages = 16, 256, 2, 4
    elif many == 16 and layout in ("rows", "groups"):
        tall, wide, warps, stages = 32, 256, 4, 3
    else:
        tall, wide, warps, stages = 64, 128, 4, 3
    if layout == "table":
        stages = 1  # or what is looked up would be copied ahead, eight bytes at a time
    wide = max(min(wide, power(inputs)), 64)
    return {"many": many, "tall": tall, "wide": wide, "num_warps": warps, "num_stages": stages}


@triton.jit
def _unpacked(
    y, weight, scales, others, magic, rows, inputs, width, groups,
    layout: tl.constexpr, bits: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    row, start = (tl.program_id(0) * tall + tl.arange(0, tall)).to(tl.int64), tl.program_id(1) * wide
    numbers = tile(weight, scales, others, magic, row, start, rows, inputs, width, groups, layout, bits, tall, wide)
    if layout == ROWS:
        numbers *= tl.load(scales + row, row < rows, 0)[:, None]
    column = start + tl.arange(0, wide)
    inside = (row < rows)[:, None] & (column < inputs)[None, :]
    tl.store(y + row[:, None] * inputs + column[None, :], numbers.to(y.dtype.element_ty), inside)


def unpacked(matrix: Matrix, inputs: int, dtype: torch.dtype) -> Tensor:
    """The numbers that codes stand for, computed in float32 and rounded once: ... n D. The codes may be a stack's."""
    assert matrix.scales is not None
    *lead, width = matrix.weight.shape
    rows, groups = matrix.weight.numel() // width, matrix.scales.shape[-1]
    y = torch.empty(*lead, inputs, dtype=dtype, device=matrix.weight.device)
    tall, wide = 8, max(min(power(inputs), 512), 64)
    weight, scales, others, _ = matrix.parts
    _unpacked[triton.cdiv(rows, tall), triton.cdiv(inputs, wide)](
        y, weight, scales, others, BITS, rows, inputs, width, groups,
        LAYOUTS.index(matrix.layout), _bits(matrix), tall, wide,
    )  # fmt: skip
    return y
