"""Attention of one new token of each of many sequences to the slots of its past, read where they lie.

A sequence's slots are cut into spans, so that a few long sequences give a whole GPU work; what comes of the spans is
joined by a second kernel. How many spans there are goes by the table's width alone, never by a length: it can be
recorded.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from lathe.model.gpu import power

BLOCK = 64  # slots that are read at once, of heads that take no more bytes than NARROW; else half as many, for a
NARROW = 256  # small card's sake
LEAST = 64  # slots of a span, at least
WIDEST = 512  # bytes of a head


@triton.jit
def _look(
    y, parts, q, keys, values, slots, counts, sinks, scale, softcap, most, span, heads,
    q_row, q_head, k_slot, k_head, v_slot, v_head,
    group: tl.constexpr, channels: tl.constexpr, v_channels: tl.constexpr, capped: tl.constexpr, sunk: tl.constexpr,
    whole: tl.constexpr, some: tl.constexpr, wide: tl.constexpr, v_wide: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, kv_head, piece = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    pieces = tl.num_programs(2)
    count = tl.load(counts + row).to(tl.int32)
    first = piece * span
    head, channel, v_channel = tl.arange(0, some), tl.arange(0, wide), tl.arange(0, v_wide)
    mine = head < group
    number = kv_head * group + head
    asked = mine[:, None] & (channel < channels)[None, :]
    query = tl.load(q + row * q_row + number[:, None] * q_head + channel[None, :], asked, 0)
    top = tl.full([some], float("-inf"), tl.float32)
    total = tl.zeros([some], tl.float32)
    gathered = tl.zeros([some, v_wide], tl.float32)
    for start in range(first, tl.minimum(first + span, count), block):
        place = start + tl.arange(0, block)
        seen = place < count
        slot = tl.load(slots + row * most + place, seen, 0)
        key = tl.load(
            keys + slot[:, None] * k_slot + kv_head * k_head + channel[None, :],
            seen[:, None] & (channel < channels)[None, :], 0,
        )  # fmt: skip
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        if capped:
            scores = softcap * (1 - 2 / (1 + tl.exp(2 * scores / softcap)))
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrunk = tl.exp(top - higher)
        value = tl.load(
            values + slot[:, None] * v_slot + kv_head * v_head + v_channel[None, :],
            seen[:, None] & (v_channel < v_channels)[None, :], 0,
        )  # fmt: skip
        gathered = gathered * shrunk[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        total = total * shrunk + tl.sum(weights, 1)
        top = higher
    if whole:
        if sunk:  # one more score, of a key that gives nothing
            total += tl.exp(tl.load(sinks + number, mine, 0).to(tl.float32) - top)
        given = (gathered / total[:, None]).to(y.dtype.element_ty)
        at = (row * heads + number[:, None]) * v_channels + v_channel[None, :]
        tl.store(y + at, given, mine[:, None] & (v_channel < v_channels)[None, :])
    else:
        at = (row * heads + number) * pieces + piece
        tl.store(parts + at * (v_channels + 2), top, mine)
        tl.store(parts + at * (v_channels + 2) + 1, total, mine)
        at = at[:, None] * (v_channels + 2) + 2 + v_channel[None, :]
        tl.store(parts + at, gathered, mine[:, None] & (v_channel < v_channels)[None, :])


@triton.jit
def _join(
    y, parts, sinks, heads, pieces, v_channels: tl.constexpr, sunk: tl.constexpr, some: tl.constexpr,
    v_wide: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    piece, channel = tl.arange(0, some), tl.arange(0, v_wide)
    there, inside = piece < pieces, channel < v_channels
    at = ((row * heads + head) * pieces + piece) * (v_channels + 2)
    tops = tl.load(parts + at, there, float("-inf"))
    top = tl.max(tops, 0)
    shares = tl.exp(tops - top)
    total = tl.sum(tl.load(parts + at + 1, there, 0) * shares, 0)
    values = tl.load(parts + at[:, None] + 2 + channel[None, :], there[:, None] & inside[None, :], 0)
    if sunk:
        total += tl.exp(tl.load(sinks + head).to(tl.float32) - top)
    given = tl.sum(values * shares[:, None], 0) / total
    tl.store(y + (row * heads + head) * v_channels + channel, given.to(y.dtype.element_ty), inside)


def fits(q: Tensor, keys: Tensor, v_channels: int) -> bool:
    """Whether the kernels take these: a cache of numbers as they are, of queries' type, and heads that are not vast."""
    return keys.dtype == q.dtype and max(q.shape[-1], v_channels) * q.itemsize <= WIDEST


def look(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    counts: Tensor,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Softmax attention of one token a sequence. q: S H C; keys: N K C; values: N K Cv; slots: S M int64, of which the
    first `counts` of each row are seen, one at least; sinks: H. Returns S H Cv."""
    rows, heads, channels = q.shape
    kv_heads, v_channels = values.shape[1:]
    most = slots.shape[1]
    if q.stride(-1) != 1:
        q = q.contiguous()
    pieces = _pieces(rows * kv_heads, most, _processors(q.device))
    span = triton.cdiv(triton.cdiv(most, pieces), BLOCK) * BLOCK
    pieces = triton.cdiv(most, span)
    y = torch.empty(rows, heads, v_channels, dtype=q.dtype, device=q.device)
    parts = y if pieces == 1 else torch.empty(rows, heads, pieces, v_channels + 2, device=q.device)
    group, told = heads // kv_heads, y if sinks is None else sinks
    block = BLOCK if max(channels, v_channels) * q.itemsize <= NARROW else BLOCK // 2
    _look[(rows, kv_heads, pieces)](
        y, parts, q, keys, values, slots.contiguous(), counts, told, scale, softcap or 1.0, most, span, heads,
        q.stride(0), q.stride(1), keys.stride(0), keys.stride(1), values.stride(0), values.stride(1),
        group, channels, v_channels, softcap is not None, sinks is not None,
        pieces == 1, max(power(group), 16), max(power(channels), 16), max(power(v_channels), 16), block,
    )  # fmt: skip
    if pieces > 1:
        sunk = sinks is not None
        _join[rows, heads](y, parts, told, heads, pieces, v_channels, sunk, power(pieces), power(v_channels))
    return y


def _pieces(alone: int, most: int, processors: int) -> int:
    """How many spans so many slots are cut into, where there would be `alone` programs without."""
    return max(1, min(triton.cdiv(2 * processors, alone), triton.cdiv(most, LEAST), 64))


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
