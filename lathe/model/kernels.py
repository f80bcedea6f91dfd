"""The hardware's seam: ragged attention over a ribbon, one matrix product per expert; knows no layer and no weights.

Everything else in `model` is ordinary tensor algebra; what a device does best in its own way is chosen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from lathe.model.layout import Layout

Cache = tuple[Tensor, Tensor]  # one layer's keys and values: N K C and N K Cv, N slots


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layout,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    cache: Cache | None = None,
) -> Tensor:
    """Causal softmax attention of every sequence on the ribbon to itself and to its past in the cache.

    q: T H C, k: T K C, v: T K Cv; H is a multiple of K. Returns T H Cv. With a cache, this ribbon's keys and values are
    first written to `layout.write`, then each sequence reads `layout.read`.
    """
    spans = list(pairwise(layout.seams))
    if cache is None:
        n = layout.lengths[0]
        if all(length == n for length in layout.lengths):  # equal lengths are a batch
            sq, sk, sv = (x.unflatten(0, (-1, n)).transpose(1, 2) for x in (q, k, v))  # S H n C
            return _attend(sq, sk, sv, layout, scale, window, softcap).transpose(1, 2).flatten(0, 1)
        contexts = [(k[a:b], v[a:b]) for a, b in spans]
    else:
        assert layout.write is not None and layout.read is not None
        keys, values = cache
        keys.index_copy_(0, layout.write, k.to(keys.dtype))
        values.index_copy_(0, layout.write, v.to(values.dtype))
        contexts = [(keys[read], values[read]) for read in layout.read]

    out = []
    for (a, b), (k, v) in zip(spans, contexts, strict=True):
        if window is not None:  # from the oldest key that the first query sees
            k, v = k[-(b - a - 1 + window) :], v[-(b - a - 1 + window) :]
        sq, sk, sv = (x.transpose(0, 1)[None].to(q.dtype) for x in (q[a:b], k, v))  # 1 H n C
        out.append(_attend(sq, sk, sv, layout, scale, window, softcap)[0].transpose(0, 1))
    return torch.cat(out) if len(out) > 1 else out[0]


def _attend(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """q: S H n C, k: S K m C, v: S K m Cv, the queries being the last n of m positions. Returns S H n Cv."""
    n, m = q.shape[2], k.shape[2]
    causal = n > 1 and n == m and (window is None or n <= window)  # no mask needed where the kernel knows the shape
    mask = None
    if n > 1 and (softcap is not None or not causal):
        mask = layout.once((n, m, window), lambda: visible(n, m, window, q.device))
    if softcap is None:
        if n == 1:  # the heads that share keys are so many queries of them: the keys are read once, not once a head
            grouped = q.reshape(len(q), k.shape[1], -1, q.shape[-1])  # S K H/K C
            return F.scaled_dot_product_attention(grouped, k, v, scale=scale).reshape(*q.shape[:3], v.shape[-1])
        gqa = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=gqa)
    q = q.unflatten(1, (k.shape[1], -1))  # S K H/K n C
    scores = torch.einsum("skhnc,skmc->skhnm", q, k) * scale
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
    return torch.einsum("skhnm,skmc->skhnc", weights, v).flatten(1, 2)


def visible(n: int, m: int, window: int | None, device: torch.device) -> Tensor:
    """Which of m keys each of the last n positions sees: itself and the past, at most `window` in all. n m, bool."""
    query = torch.arange(m - n, m, device=device)[:, None]
    key = torch.arange(m, device=device)
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


def expert_products(x: Tensor, weight: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows of x, sorted by expert, times each expert's own matrix. x: N D, weight: E F D, counts: rows per expert."""
    out = [F.linear(rows, w) for rows, w, n in zip(x.split(list(counts)), weight, counts, strict=True) if n]
    return torch.cat(out) if out else x.new_empty(0, weight.shape[1])
