"""Queries, keys and values to the kernels of looking.cpp and back: whole sequences that learn, in bfloat16."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lathe.model.native import library
from lathe.model.native.learning import addresses, kernels


@cache
def _looks() -> bool:
    """Whether this processor has what they are written for."""
    made, answer = library(), ctypes.c_int64(0)
    if made is not None:
        made.lathe_looks(ctypes.addressof(answer))
    return answer.value == 1


def takes(q: Tensor, k: Tensor, v: Tensor, sequences: int) -> bool:
    """Whether the kernels take these. q: T H C, k: T K C, v: T K Cv. A thread has a head of keys of a sequence for
    itself, so that there must be enough of them."""
    if any(x.dtype != torch.bfloat16 for x in (q, k, v)) or kernels(q, k, v) is None or not _looks():
        return False
    wide = q.shape[-1] % 16 == v.shape[-1] % 16 == 0
    return wide and sequences * k.shape[1] >= torch.get_num_threads()


class Look(torch.autograd.Function):
    """oldest: (T,) int32, the first key on the ribbon that each query sees. seams: int64, where sequences begin, and
    the last one's end. Keeps a number for each query and head beside its arguments."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, oldest: Tensor, seams: Tensor, scale: float) -> Tensor:
        q, k, v = (_apart(x) for x in (q, k, v))
        out, sizes = q.new_empty(*q.shape[:2], v.shape[-1]), q.new_empty(*q.shape[1::-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, sizes, oldest, seams)
        ctx.scale = scale
        _call("lathe_look", (q, k, v), (out, sizes, oldest, seams), scale)
        return out

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sizes, oldest, seams = ctx.saved_tensors
        found = tuple(x.new_empty(x.shape) for x in (q, k, v))
        _call("lathe_look_back", (q, k, v, _apart(outer[0])), (sizes, *found, oldest, seams), ctx.scale)
        return *found, None, None, None


def _call(name: str, apart: tuple[Tensor, ...], whole: tuple[Tensor, ...], scale: float) -> None:
    (tokens, heads, channels), (_, kv_heads, value_channels), seams = apart[0].shape, apart[2].shape, whole[-1]
    gaps = torch.tensor([gap for x in apart for gap in x.stride()[:2]])
    sizes = (tokens, heads, kv_heads, channels, value_channels, len(seams) - 1)
    getattr(library(), name)(*addresses(*apart, *whole, gaps), *sizes, scale, torch.get_num_threads())


def _apart(x: Tensor) -> Tensor:
    """With heads, and tokens an even number of numbers apart, that are each in order."""
    return x if x.stride(-1) == 1 and x.stride(0) % 2 == 0 else x.contiguous()
