"""What a cache keeps of keys and values: numbers as they are, or, in half the room, codes of 8 bits with a scale.

A row of a cache is one head's keys, or values, of one token. As codes it is int8: first SCALE bytes that are a bfloat16
number, then whole numbers from -127 to 127 that are multiplied by it. An error is at most half of the scale, that is a
254th of the row's largest number. Where values are the first channels of the keys, so are their rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lathe.model import gpu

SCALE = torch.bfloat16.itemsize


def width(channels: int, dtype: torch.dtype) -> int:
    """Numbers in a row of so many channels in a cache of this type."""
    return channels + SCALE if dtype == torch.int8 else channels


def write(cache: Tensor, slots: Tensor, x: Tensor) -> None:
    """Keep rows in these slots. cache: N K width(C), slots: T, x: T K C in any floating-point type."""
    cache.index_copy_(0, slots, coded(x) if cache.dtype == torch.int8 else x.to(cache.dtype))


def write_both(cache: tuple[Tensor, Tensor], slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Keep keys and values, in one launch where a GPU can."""
    keys, values = cache
    if gpu.able(k, v, keys, values) and k.dtype == keys.dtype and v.dtype == values.dtype:
        from lathe.model.gpu import stream

        stream.keep(keys, values, slots, k, v)
    else:
        write(keys, slots, k)
        write(values, slots, v)


def read(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of a cache, ... width(C), as numbers of a floating-point type, ... C."""
    if rows.dtype != torch.int8:
        return rows.to(dtype)
    scales = rows[..., :SCALE].contiguous().view(torch.bfloat16)
    return (rows[..., SCALE:].float() * scales).to(dtype)


def coded(x: Tensor) -> Tensor:
    """Rows of numbers, ... C, as codes, ... width(C)."""
    x = x.float()
    scales = (x.abs().amax(-1, keepdim=True) / 127).bfloat16()
    codes = (x / torch.where(scales == 0, 1, scales)).round().to(torch.int8)
    return torch.cat((scales.view(torch.int8), codes), dim=-1)
