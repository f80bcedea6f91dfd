"""Rows of numbers to the kernels of encoding.cpp, and codes of 4 or 8 bits back.

Each function takes n D, and gives codes and scales as transforms.kinds has them; None where no kernel takes the rows:
on another device, of another type than float32 or bfloat16, or few.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from lathe.model.native import TYPES
from lathe.model.native.learning import addresses, kernels

GROUP = 32
LITTLE = 1 << 14  # numbers for which no kernels are built


def int4(rows: Tensor, ends: Sequence[float]) -> tuple[Tensor, Tensor] | None:
    """Returns n ceil(D/32)*16, uint8, and n ceil(D/32), float16."""
    made = _kernels(rows)
    if made is None:
        return None
    rows, told = rows.contiguous(), torch.tensor(ends)
    n, inputs = rows.shape
    groups = -(-inputs // GROUP)
    codes = torch.empty(n, groups * GROUP // 2, dtype=torch.uint8)
    scales = torch.empty(n, groups, dtype=torch.float16)
    sizes = n, inputs, len(ends), TYPES[rows.dtype], torch.get_num_threads()
    made.lathe_int4(*addresses(rows, told, codes, scales), *sizes)
    return codes, scales


def int8(rows: Tensor, grouped: bool) -> tuple[Tensor, Tensor] | None:
    """Returns n D, int8, and n 1, float32; if grouped n ceil(D/32), float16."""
    made = _kernels(rows)
    if made is None:
        return None
    rows = rows.contiguous()
    n, inputs = rows.shape
    codes = torch.empty(n, inputs, dtype=torch.int8)
    scales = torch.empty(n, -(-inputs // GROUP), dtype=torch.float16) if grouped else torch.empty(n, 1)
    sizes = n, inputs, grouped, TYPES[rows.dtype], torch.get_num_threads()
    made.lathe_int8(*addresses(rows, codes, scales), *sizes)
    return codes, scales


def _kernels(rows: Tensor) -> ctypes.CDLL | None:
    return kernels(rows) if rows.numel() >= LITTLE else None
