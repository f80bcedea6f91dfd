"""Attention of a whole ribbon and its gradient in blocks of queries, by matrix products as large as they can be.

For learning on a CPU, where torch's own attention takes twice as long (bfloat16, 4 x 512 tokens, 9 heads) and wants a
call of its own for every sequence. Seams cost nothing here: a block may hold several short sequences, and what its
queries must not see is masked. Saves queries, keys and values only; weights are computed again for the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lathe.model.layout import Layout
from lathe.model.native import looking

QUERIES = 128  # in a block: small enough that few scores are computed to be masked, large enough for fast products


@dataclass(frozen=True, eq=False)
class Block:
    """Queries first to end of a ribbon see keys `oldest` to end. mask: queries by keys, -inf where one is not seen."""

    oldest: int
    first: int
    end: int
    mask: Tensor


@dataclass(frozen=True)
class Reach:
    """How far back a query sees: `window` keys, itself included, or those of its `chunk`; without either, all."""

    window: int | None = None
    chunk: int | None = None


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float, reach: Reach) -> Tensor:
    """Causal softmax attention within each sequence. q: T H C, k: T K C, v: T K Cv. Returns T H Cv.

    Scores and weights have q's dtype between their products; the softmax itself is computed in float32.
    """
    if torch.is_autocast_enabled(q.device.type):
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    if looking.takes(q, k, v, len(layout.lengths)):
        return looking.Look.apply(q, k, v, *layout.once(("oldest", reach), lambda: _oldest(layout, reach)), scale)
    n = layout.lengths[0]
    alike = all(length == n for length in layout.lengths)  # equal lengths are a batch, cut into the same blocks
    seams = (0, n) if alike else layout.seams
    blocks = layout.once((reach, q.dtype), lambda: list(_blocks(seams, reach, q)))
    return Attend.apply(q, k, v, len(layout.lengths) if alike else 1, blocks, scale)


def _oldest(layout: Layout, reach: Reach) -> tuple[Tensor, Tensor]:
    """The first token on the ribbon that each one sees, int32; and the seams, int64."""
    seams = torch.tensor(layout.seams)
    begin = seams[:-1].repeat_interleave(seams.diff())  # of each token's sequence
    token = torch.arange(len(begin))
    oldest = begin if reach.window is None else begin.maximum(token + 1 - reach.window)
    if reach.chunk is not None:
        oldest = oldest.maximum(token - (token - begin) % reach.chunk)
    return oldest.to(torch.int32), seams


def _blocks(seams: tuple[int, ...], reach: Reach, like: Tensor) -> Iterator[Block]:
    """Every sequence is cut into blocks; short ones that lie side by side share one."""
    first = 0
    while first < seams[-1]:
        begin = max(seam for seam in seams if seam <= first)
        ends = [seam for seam in seams if first < seam <= first + QUERIES]
        whole = ends and (begin == first)  # only a block that begins with a sequence may go on into the next
        end = ends[-1] if whole else min([first + QUERIES, *ends[:1]])
        oldest = max(begin, first + 1 - reach.window) if reach.window else begin
        oldest = max(oldest, first - (first - begin) % reach.chunk) if reach.chunk else oldest
        yield Block(oldest, first, end, _mask(seams, reach, oldest, first, end, like))
        first = end


def _mask(seams: tuple[int, ...], reach: Reach, oldest: int, first: int, end: int, like: Tensor) -> Tensor:
    query = torch.arange(first, end, device=like.device)[:, None]
    key = torch.arange(oldest, end, device=like.device)
    starts = torch.tensor(seams, device=like.device)
    begin = starts[torch.searchsorted(starts, query, right=True) - 1]  # of each query's sequence
    seen = (key <= query) & (key >= begin)
    if reach.window is not None:
        seen &= key > query - reach.window
    if reach.chunk is not None:
        seen &= key >= query - (query - begin) % reach.chunk
    return torch.zeros_like(seen, dtype=like.dtype).masked_fill_(~seen, float("-inf"))


class Attend(torch.autograd.Function):
    """q: T H C, k: T K C, v: T K Cv, T being `rows` times as long as the blocks reach. Below, B = rows * K."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: int, blocks: list[Block], scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.rows, ctx.blocks, ctx.scale = rows, blocks, scale
        out = q.new_empty(*q.shape[:2], v.shape[-1])
        keys, values = _by_head(k, rows), _by_head(v, rows)  # B n C
        queries, outputs = _grouped(q, rows, k.shape[1]), _grouped(out, rows, k.shape[1])  # rows K G n C
        for block in blocks:
            weights = _weights(_part(queries, block), keys, block, scale)
            _put(outputs, block, torch.bmm(weights, values[:, block.oldest : block.end]))
        return out

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        keys, values = _by_head(k, ctx.rows), _by_head(v, ctx.rows)
        by_q, by_keys, by_values = torch.empty_like(q), _zeros(keys), _zeros(values)
        queries, outs, by_queries = (_grouped(x, ctx.rows, k.shape[1]) for x in (q, outer[0], by_q))
        for block in ctx.blocks:
            some, out, seen = _part(queries, block), _part(outs, block), slice(block.oldest, block.end)
            weights = _weights(some, keys, block, ctx.scale)
            by_values[:, seen] += torch.bmm(weights.transpose(1, 2), out)
            scores = torch.bmm(out, values[:, seen].transpose(1, 2))
            torch._softmax_backward_data(scores, weights, -1, scores.dtype, grad_input=scores)
            _put(by_queries, block, _scaled(scores, keys[:, seen], ctx.scale))
            by_keys[:, seen] += _scaled(scores.transpose(1, 2), some, ctx.scale)
        by_k, by_v = (_as(made, x, ctx.rows) for made, x in ((by_keys, k), (by_values, v)))
        return by_q, by_k, by_v, None, None, None


def _weights(q: Tensor, keys: Tensor, block: Block, scale: float) -> Tensor:
    """The softmax of one block's scores. q: B (G m) C. Returns B (G m) keys."""
    scores = _scaled(q, keys[:, block.oldest : block.end].transpose(1, 2), scale)
    scores.unflatten(1, (-1, block.end - block.first)).add_(block.mask)
    return torch._softmax(scores, -1, False, out=scores)


def _scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale * a @ b, scaled before it is rounded."""
    out = a.new_empty(len(a), a.shape[1], b.shape[2])
    return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)


def _by_head(x: Tensor, rows: int) -> Tensor:
    """T K C to (rows K) n C, without gaps."""
    return x.unflatten(0, (rows, -1)).transpose(1, 2).flatten(0, 1).contiguous()


def _as(made: Tensor, like: Tensor, rows: int) -> Tensor:
    """(rows K) n C to like's T K C and dtype."""
    return made.unflatten(0, (rows, -1)).transpose(1, 2).flatten(0, 1).to(like.dtype)


def _grouped(x: Tensor, rows: int, kv_heads: int) -> Tensor:
    """A view of T H C as rows K G n C."""
    return x.view(rows, -1, kv_heads, x.shape[1] // kv_heads, x.shape[2]).permute(0, 2, 3, 1, 4)


def _part(x: Tensor, block: Block) -> Tensor:
    """One block's rows K G m C as B (G m) C: the heads that share keys are so many more queries of them."""
    return x[:, :, :, block.first : block.end].flatten(2, 3).flatten(0, 1)


def _put(x: Tensor, block: Block, part: Tensor) -> None:
    place = x[:, :, :, block.first : block.end]
    place.copy_(part.view(place.shape))


def _zeros(x: Tensor) -> Tensor:
    """In float32, since every block adds to them."""
    return torch.zeros_like(x, dtype=torch.float32)
