"""Tensors of any bits, boxes of any shape, and damaged copies of files, for the tests of weights."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from hypothesis import strategies as st
from torch import Tensor

from lathe.weights.tensors import Box


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Any bits at all, for dtypes that have a meaning for each."""
    count = torch.Size(shape).numel() * dtype.itemsize
    high = 2 if dtype == torch.bool else 256
    raw = torch.randint(0, high, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return raw.view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in dtype, shape and every bit (NaN included)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = (x.contiguous().as_strided((x.numel(),), (1,)).view(torch.uint8) for x in (a, b))
    return torch.equal(a, b)


def draw_box(data: st.DataObject, shape: tuple[int, ...]) -> Box:
    ends = [sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in shape]
    return tuple(slice(low, high) for low, high in ends)


def damaged(good: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Every beginning of a small file, then random damage."""
    yield from (good[:n] for n in range(0, len(good), max(len(good) // 500, 1)))
    rng = random.Random(seed)
    yield from (hurt(good, rng) for _ in range(count))


def hurt(good: bytes, rng: random.Random) -> bytes:
    """A file with bytes changed, cut out or put in, and blocks of ones."""
    bad = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(bad))
        match rng.randrange(5):
            case 0:
                bad[at] = rng.randrange(256)
            case 1:
                bad[at] ^= 1 << rng.randrange(8)
            case 2:
                del bad[at : at + rng.randrange(1, 9)]
            case 3:
                bad[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 4:
                bad[at : at + 8] = b"\xff" * 8
    return bytes(bad)
