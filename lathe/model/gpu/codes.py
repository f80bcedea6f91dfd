"""Codes become numbers in a GPU's registers, as `matrix` says that they are laid out.

Products of one row with whole numbers apply scales to sums; where many rows come, each number is made once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lathe.model.gpu.matrix import LAYOUTS

NUMBERS, ROWS, GROUPS, FOURS, ZEROS, TABLE = (tl.constexpr(number) for number in range(len(LAYOUTS)))
# Whole numbers become floats without being converted, which is slow: or'ed into the mantissa of 2^23 they stand for
# 2^23 and themselves. Where they are not shifted to its end, they stand for themselves times a power of two, by which
# what they are multiplied with is divided beforehand (`_spread`). BITS are given to the kernels as a number (`magic`),
# as only what stands in a register can be masked and or'ed by one instruction.
MAGIC, BITS = tl.constexpr(8388608.0), 0x4B000000


@triton.jit
def _whole(word, magic, number: tl.constexpr, bits: tl.constexpr, spread: tl.constexpr):
    """The whole number of so many bits at this place of a word, from the low end, less half of what it may be."""
    together: tl.constexpr = (20 if bits == 4 else 16) // bits  # that fit into the mantissa
    shift: tl.constexpr = (number if not spread else 0 if number < together else 32 // bits - together) * bits
    place: tl.constexpr = number * bits - shift
    mantissa = ((word >> shift) & (((1 << bits) - 1) << place)) | magic
    return mantissa.to(tl.float32, bitcast=True) - (MAGIC + (1 << (bits - 1 + place)))


@triton.jit
def _spread(column, bits: tl.constexpr):
    """What the numbers of these columns are divided by, where those they meet are spread."""
    together: tl.constexpr = (20 if bits == 4 else 16) // bits
    number = (column ^ 1) % 8 if bits == 4 else column % 4
    return tl.exp2(-bits * tl.where(number < together, number, number - (32 // bits - together)).to(tl.float32))


@triton.jit
def _wholes(
    weight, magic, row, start, rows, width,
    bits: tl.constexpr, spread: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Whole numbers of 4 or 8 bits of rows from column `start` on, read as words: tall wide, float32. Those of 4 bits
    are less 8."""
    each: tl.constexpr = 32 // bits
    word = start // each + tl.arange(0, wide // each)
    at = row[:, None] * (width // 4) + word[None, :]
    inside = (row < rows)[:, None] & (word < width // 4)[None, :]
    code = tl.load(weight.to(tl.pointer_type(tl.int32)) + at, inside, 0)
    if bits == 8:
        code ^= 0x80808080 - (1 << 32)  # as if they had no sign
        even = tl.join(_whole(code, magic, 0, 8, spread), _whole(code, magic, 2, 8, spread))
        odd = tl.join(_whole(code, magic, 1, 8, spread), _whole(code, magic, 3, 8, spread))
    else:  # the first of a byte is its upper half
        even = tl.join(tl.join(_whole(code, magic, 1, 4, spread), _whole(code, magic, 5, 4, spread)),
                       tl.join(_whole(code, magic, 3, 4, spread), _whole(code, magic, 7, 4, spread)))  # fmt: skip
        odd = tl.join(tl.join(_whole(code, magic, 0, 4, spread), _whole(code, magic, 4, 4, spread)),
                      tl.join(_whole(code, magic, 2, 4, spread), _whole(code, magic, 6, 4, spread)))  # fmt: skip
    return tl.reshape(tl.join(even, odd), (tall, wide))


@triton.jit
def _values(weight, others, row, start, rows, width, tall: tl.constexpr, wide: tl.constexpr):
    """Values of a table from column `start` on, two of which each byte stands for: tall wide, float32."""
    byte = start // 2 + tl.arange(0, wide // 2)
    inside = (row < rows)[:, None] & (byte < width)[None, :]
    pairs = tl.load(others + tl.load(weight + row[:, None] * width + byte[None, :], inside, 0).to(tl.int32))
    first, second = pairs.to(tl.int32), (pairs >> 32).to(tl.int32)
    both = tl.join(first.to(tl.float32, bitcast=True), second.to(tl.float32, bitcast=True))
    return tl.reshape(both, (tall, wide))


@triton.jit
def tile(
    weight, scales, others, magic, row, start, rows, inputs, width, groups,
    layout: tl.constexpr, bits: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Rows of a matrix from column `start` on, float32: tall wide. width, groups: codes and scales of a row."""
    if bits == 4:
        numbers = _wholes(weight, magic, row, start, rows, width, 4, False, tall, wide)
    elif layout == TABLE:
        numbers = _values(weight, others, row, start, rows, width, tall, wide)
    else:
        column = start + tl.arange(0, wide)
        inside = (row < rows)[:, None] & (column < inputs)[None, :]
        numbers = tl.load(weight + row[:, None] * width + column[None, :], inside, 0.0).to(tl.float32)
    if layout > ROWS:
        size: tl.constexpr = 64 if layout == TABLE else 32
        group = start // size + tl.arange(0, wide // size)
        at, known = row[:, None] * groups + group[None, :], (row < rows)[:, None] & (group < groups)[None, :]
        factors = tl.load(scales + at, known, 0).to(tl.float32)
        numbers = tl.reshape(numbers, (tall, wide // size, size))
        if layout == ZEROS:
            numbers -= tl.load(others + at, known, 0).to(tl.float32)[:, :, None] - 8
        numbers = tl.reshape(numbers * factors[:, :, None], (tall, wide))
    return numbers


@triton.jit
def coded(
    x, weight, scales, others, magic, row, rows, inputs, width, groups, layout: tl.constexpr, bits: tl.constexpr,
    tall: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """Products of one row of x with some of a matrix of whole numbers, or of values of a table: tall, float32.

    Scales and zero points are applied to the sums of groups, not to numbers.
    """
    parts = tl.zeros([tall, wide // 32], tl.float32)
    for start in range(0, inputs, wide):
        column, group = start + tl.arange(0, wide), start // 32 + tl.arange(0, wide // 32)
        if layout == TABLE:
            group //= 2  # whose scales are for 64
        given = tl.load(x + column, column < inputs, 0).to(tl.float32)
        if layout == TABLE:
            terms = _values(weight, others, row, start, rows, width, tall, wide) * given[None, :]
        else:
            numbers = _wholes(weight, magic, row, start, rows, width, bits, True, tall, wide)
            terms = numbers * (given * _spread(column, bits))[None, :]
        sums = tl.sum(tl.reshape(terms, (tall, wide // 32, 32)), 2)
        at, known = row[:, None] * groups + group[None, :], (row < rows)[:, None] & (group < groups)[None, :]
        if layout == ZEROS:
            zeros = tl.load(others + at, known, 0).to(tl.float32) - 8
            sums -= zeros * tl.sum(tl.reshape(given, (wide // 32, 32)), 1)[None, :]
        if layout != ROWS:
            sums *= tl.load(scales + at, known, 0).to(tl.float32)
        parts += sums
    return tl.sum(parts, 1)
