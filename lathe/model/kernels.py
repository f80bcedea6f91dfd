"""The hardware's seam: ragged attention over a ribbon, one matrix product per expert; knows no layer and no weights.

Everything else in `model` is ordinary tensor algebra; what a device does best in its own way is chosen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lathe.model import blockwise, kept, tables
from lathe.model.layout import Layout

Cache = tuple[Tensor, Tensor]  # one layer's keys and values: N K C and N K Cv, N slots; or codes of them, see `kept`
Read = slice | Tensor  # slots of a cache, or places on a ribbon


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    scale: float,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    cache: Cache | None = None,
) -> Tensor:
    """Causal softmax attention of every sequence on the ribbon to itself and to its past in the cache.

    q: T H C, k: T K C, v: T K Cv; H is a multiple of K; sinks: H. Returns T H Cv. With a cache, this ribbon's keys and
    values are first written to `layout.write`, then each sequence reads what it sees of `layout.read` or `table`.
    """
    assert window is None or chunk is None
    plain = softcap is None and sinks is None
    if plain and cache is None and q.device.type == "cpu" and _learning(q, k, v):
        return blockwise.attend(q, k, v, layout, scale, blockwise.Reach(window, chunk))
    seen = Seen(scale, window, chunk, softcap)
    spans = list(pairwise(layout.seams))
    reads: tuple[Read, ...] = tuple(slice(a, b) for a, b in spans)
    if cache is None:
        n = layout.lengths[0]
        if all(length == n for length in layout.lengths):  # equal lengths are a batch
            sq, sk, sv = (x.unflatten(0, (-1, n)).transpose(1, 2) for x in (q, k, v))  # S H n C
            return _attend(sq, sk, sv, layout, seen, sinks).transpose(1, 2).flatten(0, 1)
        keys, values = k, v
    else:
        assert layout.write is not None
        keys, values = cache
        if values.data_ptr() == keys.data_ptr():  # they are a part of the keys
            kept.write(keys, layout.write, k)
        else:
            kept.write_both(cache, layout.write, k, v)
        if layout.table is not None:
            many = sinks is None and _flash(q, v, seen)
            return tables.attend(q, cache, v.shape[-1], layout, seen, sinks, many)
        assert layout.read is not None
        reads = layout.read
    if sinks is None and _flash(q, v, seen):
        return ragged(q, keys, values, layout, seen, reads)

    out = []
    for (a, b), read in zip(spans, reads, strict=True):
        read = seen.part(read, b - a)
        rows = (q[a:b], kept.read(keys[read], q.dtype), kept.read(values[read], q.dtype))
        sq, sk, sv = (x.transpose(0, 1)[None] for x in rows)  # 1 H n C
        out.append(_attend(sq, sk, sv, layout, seen, sinks)[0].transpose(0, 1))
    return torch.cat(out) if len(out) > 1 else out[0]


def _flash(q: Tensor, v: Tensor, seen: Seen) -> bool:
    """Whether the kernel for sequences of many lengths takes these: it is for GPUs, half precision and plain scores."""
    channels = q.shape[-1]
    fits = q.dtype in (torch.float16, torch.bfloat16) and channels == v.shape[-1] <= 256 and channels % 8 == 0
    return q.is_cuda and fits and seen.softcap is None and seen.chunk is None


def ragged(q: Tensor, keys: Tensor, values: Tensor, layout: Layout, seen: Seen, reads: Sequence[Read]) -> Tensor:
    """Attention of sequences of many lengths in one kernel: each piece of q to the slots that it reads. T H C."""
    from torch.nn.attention.varlen import varlen_attn  # only now: it brings torch's compiler along

    def made() -> tuple[Tensor, Tensor, int, Tensor | None]:
        parts = [seen.part(read, n) for read, n in zip(reads, layout.lengths, strict=True)]
        lengths = [part.stop - part.start if isinstance(part, slice) else len(part) for part in parts]
        ends = [list(layout.seams), list(accumulate(lengths, initial=0))]
        queries, rows = torch.tensor(ends, dtype=torch.int32).to(q.device)
        return queries, rows, max(lengths), _slots(parts, q.device) if layout.read else None

    queries, rows, longest, slots = layout.once(("ragged", seen.window), made)
    if slots is not None:
        keys, values = kept.read(keys[slots], q.dtype), kept.read(values[slots], q.dtype)
    # Before 2.12, heads shared keys unasked.
    told: dict[str, Any] = {"enable_gqa": True} if torch.__version__ >= "2.12" else {}
    left = -1 if seen.window is None else seen.window - 1
    most = max(layout.lengths)
    y = varlen_attn(q, keys, values, queries, rows, most, longest, scale=seen.scale, window_size=(left, 0), **told)
    assert isinstance(y, Tensor)
    return y


def _slots(parts: Sequence[Read], device: torch.device) -> Tensor:
    """All slots that are read, one sequence after the other."""
    if all(isinstance(part, slice) for part in parts):
        runs = [np.arange(part.start, part.stop) for part in parts if isinstance(part, slice)]
        return torch.from_numpy(np.concatenate(runs)).to(device)
    return torch.cat(
        [torch.arange(part.start, part.stop, device=device) if isinstance(part, slice) else part for part in parts]
    )


def _learning(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


@dataclass(frozen=True)
class Seen:
    """How scores are scaled, and which keys a query sees: all before it, or a window of them, or those of its chunk."""

    scale: float
    window: int | None
    chunk: int | None
    softcap: float | None

    def part(self, read: Read, n: int) -> Read:
        """What the last `n` queries see of the slots of a whole sequence: from the oldest key that the first sees."""
        first = (read.stop - read.start if isinstance(read, slice) else len(read)) - n  # the first query's position
        if self.window is not None:
            first = max(first + 1 - self.window, 0)
        elif self.chunk is not None:
            first -= first % self.chunk
        else:
            return read
        return slice(read.start + first, read.stop) if isinstance(read, slice) else read[first:]

    def past(self, m: int) -> bool:
        """Whether each of m positions sees all that stands before it."""
        return all(most is None or m <= most for most in (self.window, self.chunk))

    def mask(self, n: int, m: int, device: torch.device) -> Tensor:
        """Which of m keys each of the last n positions sees, itself included. n m, bool."""
        query = torch.arange(m - n, m, device=device)[:, None]
        key = torch.arange(m, device=device)
        seen = key <= query
        if self.window is not None:
            seen &= key > query - self.window
        if self.chunk is not None:  # the first key is the first of a chunk
            seen &= key >= query - query % self.chunk
        return seen


def _attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, seen: Seen, sinks: Tensor | None) -> Tensor:
    """q: S H n C, k: S K m C, v: S K m Cv, the queries being the last n of m positions. Returns S H n Cv."""
    n, m = q.shape[2], k.shape[2]
    plain = seen.softcap is None and sinks is None
    causal = n > 1 and n == m and seen.past(m)  # no mask needed where the kernel knows the shape
    mask = None
    if n > 1 and not (plain and causal):
        mask = layout.once((n, m, seen.window, seen.chunk), lambda: seen.mask(n, m, q.device))
    if plain:
        if n == 1:  # the heads that share keys are so many queries of them: the keys are read once, not once a head
            grouped = q.reshape(len(q), k.shape[1], -1, q.shape[-1])  # S K H/K C
            return F.scaled_dot_product_attention(grouped, k, v, scale=seen.scale).reshape(*q.shape[:3], v.shape[-1])
        gqa = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=seen.scale, enable_gqa=gqa)
    q = q.unflatten(1, (k.shape[1], -1))  # S K H/K n C
    scores = torch.einsum("skhnc,skmc->skhnm", q, k) * seen.scale
    if seen.softcap is not None:
        scores = seen.softcap * torch.tanh(scores / seen.softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:  # one more score, of a key that gives nothing
        sink = sinks.to(scores.dtype).view(*scores.shape[1:3], 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat((scores, sink), dim=-1).softmax(-1, dtype=torch.float32)[..., :-1].to(v.dtype)
    else:
        weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
    return torch.einsum("skhnm,skmc->skhnc", weights, v).flatten(1, 2)


@dataclass(frozen=True, eq=False)
class Groups:
    """How many rows each expert gets, one expert after the other. sizes: (E,) int64."""

    sizes: Tensor

    @cached_property
    def ends(self) -> Tensor:
        """Where each expert's rows end, as a grouped product wants it: (E,) int32, on the device."""
        return self.sizes.cumsum(0).to(torch.int32)

    @cached_property
    def spans(self) -> list[tuple[int, int, int]]:
        """The experts that get rows: number, first row, end."""
        sizes = self.sizes.tolist()
        return [(e, end - n, end) for e, (n, end) in enumerate(zip(sizes, accumulate(sizes), strict=True)) if n]


def expert_products(x: Tensor, weight: Tensor, bias: Tensor | None, groups: Groups) -> Tensor:
    """Rows of x, sorted by expert, times each expert's own matrix. x: N D, weight: E F D, bias: E F. Returns N F."""
    if x.is_cuda and x.dtype == weight.dtype == torch.bfloat16 and x.shape[-1] % 8 == weight.shape[1] % 8 == 0:
        return grouped_products(x, weight, bias, groups)  # which wants rows of whole 16 bytes
    rows = [F.linear(x[a:b], weight[e], None if bias is None else bias[e]) for e, a, b in groups.spans]
    return torch.cat(rows) if rows else x.new_empty(0, weight.shape[1])


def grouped_products(x: Tensor, weight: Tensor, bias: Tensor | None, groups: Groups) -> Tensor:
    """The same in one kernel, which learns on the device how many rows each expert has: the host does not wait."""
    y = torch._grouped_mm(x, weight.transpose(1, 2), offs=groups.ends)
    if bias is None:
        return y
    of = torch.searchsorted(groups.ends, torch.arange(len(x), dtype=torch.int32, device=x.device), right=True)
    return y + bias[of]
