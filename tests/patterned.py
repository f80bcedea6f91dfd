"""Weights that anyone can make again from a tensor's name and shape, and what is recorded of them.

All are multiples of 1/1024 below 1/4, so that one added to them, or taken away again, is exact in float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import prod
from zlib import crc32

import torch
from torch import Tensor


def pattern(name: str, shape: Sequence[int]) -> Tensor:
    """float32 of `shape`, scattered over [-1/4, 1/4) by multiplicative hashing."""
    scattered = (torch.arange(prod(shape)) * 2654435761 + crc32(name.encode())) % 2**32 // 2**23
    return (scattered / 1024 - 0.25).float().view(*shape)


def digest(tensor: Tensor) -> str:
    """16 hexadecimal digits that stand for the bytes of a float32 tensor."""
    return hashlib.sha256(tensor.float().contiguous().numpy().tobytes()).hexdigest()[:16]
