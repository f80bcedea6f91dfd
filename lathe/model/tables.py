"""One new token of each of many sequences looks at its past, in shapes that stay while the sequences grow.

So the same operations serve every step, and can be recorded (`engine.graphs`): nothing is brought to the host, and what
lies behind a sequence's end is hidden, not left out.
"""

from __future__ import annotations

from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lathe.model import gpu, kept
from lathe.model.layout import Layout, Table

if TYPE_CHECKING:
    from lathe.model.kernels import Cache, Seen


def attend(
    q: Tensor, cache: Cache, channels: int, layout: Layout, seen: Seen, sinks: Tensor | None, ragged: bool
) -> Tensor:
    """Softmax attention of the only token of each sequence to the slots of `layout.table`. q: S H C. Returns S H Cv.

    channels: of a value, Cv. ragged: whether the kernel for sequences of many lengths takes these.
    """
    assert layout.table is not None
    table = layout.table
    slots, counts = layout.once(("seen", seen.window, seen.chunk), lambda: _seen(table, seen))
    keys, values = cache
    if gpu.able(q, sinks):
        from lathe.model.gpu import looking

        if looking.fits(q, keys, channels):
            return looking.look(q, keys, values[..., :channels], slots, counts, seen.scale, seen.softcap, sinks)
    k = kept.read(keys[slots], q.dtype)  # S m K C
    v = k[..., :channels] if values.data_ptr() == keys.data_ptr() else kept.read(values[slots], q.dtype)
    if ragged and _counted():
        return _ragged(q, k, v, counts, seen.scale)
    mask = layout.once(("mask", seen.window, seen.chunk), lambda: _mask(slots, counts))
    return _masked(q, k, v, mask, seen, sinks)


def _seen(table: Table, seen: Seen) -> tuple[Tensor, Tensor]:
    """The slots that each sequence's new token sees, and then others, S m; and how many it sees, S."""
    lengths, most = table.lengths, table.slots.shape[1]
    if seen.window is not None:
        width, first = seen.window, (lengths - seen.window).clamp(min=0)
    elif seen.chunk is not None:
        width, first = seen.chunk, (lengths - 1) - (lengths - 1) % seen.chunk
    else:
        return table.slots, lengths
    columns = first[:, None] + torch.arange(min(width, most), device=first.device)
    return table.slots.gather(1, columns.clamp(max=most - 1)), lengths - first


def _mask(slots: Tensor, counts: Tensor) -> Tensor:
    """Whether a token sees a slot: S 1 1 m."""
    return torch.arange(slots.shape[1], device=slots.device) < counts[:, None, None, None]


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, seen: Seen, sinks: Tensor | None) -> Tensor:
    q = q.unflatten(1, (k.shape[2], -1))  # S K H/K C: the heads that share keys are so many queries of them
    k, v = k.transpose(1, 2), v.transpose(1, 2)  # S K m C
    if seen.softcap is None and sinks is None:
        return F.scaled_dot_product_attention(q, k, v, mask, scale=seen.scale).flatten(1, 2)
    scores = q @ k.mT * seen.scale  # S K H/K m
    if seen.softcap is not None:
        scores = seen.softcap * torch.tanh(scores / seen.softcap)
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:  # one more score, of a key that gives nothing
        sink = sinks.to(scores.dtype).view(*scores.shape[1:3], 1).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, sink), dim=-1)
    weights = scores.softmax(-1, dtype=torch.float32)[..., : k.shape[2]].to(v.dtype)
    return (weights @ v).flatten(1, 2)


def _ragged(q: Tensor, k: Tensor, v: Tensor, counts: Tensor, scale: float) -> Tensor:
    """In one kernel, which learns on the device how many keys count."""
    from torch.nn.attention.varlen import varlen_attn  # only now: it brings torch's compiler along

    rows, most = k.shape[:2]
    ends = torch.arange(rows + 1, dtype=torch.int32, device=q.device)
    told: dict[str, Any] = {"enable_gqa": True, "seqused_k": counts.to(torch.int32)}
    y = varlen_attn(q, k.flatten(0, 1), v.flatten(0, 1), ends, ends * most, 1, most, scale=scale, **told)
    assert isinstance(y, Tensor)
    return y


@cache
def _counted() -> bool:
    """Whether that kernel can be told so, as in newer PyTorch."""
    from torch.nn.attention.varlen import varlen_attn

    return {"enable_gqa", "seqused_k"} <= signature(varlen_attn).parameters.keys()
