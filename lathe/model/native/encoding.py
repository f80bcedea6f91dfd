"""Rows of numbers to the kernel of encoding.cpp, and codes of 4 bits back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lathe.model.native.learning import addresses, kernels

GROUP = 32
LITTLE = 1 << 14  # numbers for which no kernels are built


def int4(rows: Tensor, ends: Sequence[float]) -> tuple[Tensor, Tensor] | None:
    """Codes and scales as transforms.quantize has them. rows: n D. Returns n ceil(D/32)*16, uint8, and n ceil(D/32),
    float16; None where no kernel takes them: on another device, of another type than float32, or few."""
    made = kernels(rows) if rows.dtype == torch.float32 and rows.numel() >= LITTLE else None
    if made is None:
        return None
    rows, told = rows.contiguous(), torch.tensor(ends)
    n, inputs = rows.shape
    groups = -(-inputs // GROUP)
    codes = torch.empty(n, groups * GROUP // 2, dtype=torch.uint8)
    scales = torch.empty(n, groups, dtype=torch.float16)
    made.lathe_int4(*addresses(rows, told, codes, scales), n, inputs, len(ends), torch.get_num_threads())
    return codes, scales
