"""Blocks of ggml's types become the codes, scales and minima or levels that `transforms.kinds` has: the same numbers,
in another order. Each is a Ref of its own, of which no more is computed than is read; knows no file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lathe.weights.blocks import bits, fifth, scales_and_minima
from lathe.weights.tensors import Box, Ref


@dataclass(frozen=True)
class Part:
    """What a block has of it: how many, of which type, and how N blocks become N rows of them."""

    count: int
    dtype: torch.dtype
    of: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Way:
    """A type of blocks: which of `transforms.kinds` it is, and its parts as they are named there."""

    kind: str
    parts: Mapping[str, Part]

    def refs(self, raw: Ref) -> dict[str, Ref]:
        """The parts of a tensor's blocks, ... x blocks x bytes."""
        return {name: _ref(raw, part) for name, part in self.parts.items()}


def _ref(raw: Ref, part: Part) -> Ref:
    *lead, blocks, size = raw.shape

    def fetch(box: Box) -> Tensor:
        some = raw.fetch((*box[:-1], slice(0, blocks), slice(0, size)))
        found = part.of(some.reshape(-1, size))
        return found.reshape(*some.shape[:-2], blocks * part.count)[..., box[-1]]

    return Ref((*lead, blocks * part.count), part.dtype, fetch, raw.source)


def _halves(first: int, last: int, sign: int = 1) -> Part:
    """The floats of 16 bits that lie in these bytes."""

    def of(raw: Tensor) -> Tensor:
        return raw[:, first:last].contiguous().view(torch.float16) * sign

    return Part((last - first) // 2, torch.float16, of)


def _fours(first: int, run: int, count: int) -> Part:
    """Codes of 4 bits from a byte on, in whose lower halves the first `run` of them lie, and the next in its upper
    ones: as neighbours, two in a byte, the first in its upper half."""

    def of(raw: Tensor) -> Tensor:
        q = bits(raw[:, first:], (0, 4), 15, run)
        return q[:, ::2] << 4 | q[:, 1::2]

    return Part(count // 2, torch.uint8, of)


def _fives(count: int, zero: int, of: Callable[[Tensor], Tensor]) -> Part:
    return Part(count, torch.int8, lambda raw: of(raw).to(torch.int8) - zero)


def _levels(raw: Tensor) -> Tensor:
    return torch.stack(scales_and_minima(raw[:, 4:16]), -1).flatten(1).view(torch.int8)


SCALE, MINIMUM, BOTH, LEVELS = _halves(0, 2), _halves(2, 4, -1), _halves(0, 4), Part(16, torch.int8, _levels)
WAYS = {  # where the bytes of a block lie is told beside the functions of blocks.py
    "Q4_0": Way("int4", {"codes": _fours(2, 16, 32), "scales": SCALE}),
    "Q4_1": Way("q4_1", {"codes": _fours(4, 16, 32), "scales": SCALE, "minima": MINIMUM}),
    "Q5_0": Way(
        "int8-32",
        {"codes": _fives(32, 16, lambda raw: bits(raw[:, 6:], (0, 4), 15, 16) | fifth(raw[:, 2:6])), "scales": SCALE},
    ),
    "Q5_1": Way(
        "q5_1",
        {
            "codes": _fives(32, 0, lambda raw: bits(raw[:, 8:], (0, 4), 15, 16) | fifth(raw[:, 4:8])),
            "scales": SCALE,
            "minima": MINIMUM,
        },
    ),
    "Q8_0": Way("int8-32", {"codes": Part(32, torch.int8, lambda raw: raw[:, 2:].view(torch.int8)), "scales": SCALE}),
    "Q4_K": Way("q4_k", {"codes": _fours(16, 32, 256), "scales": BOTH, "levels": LEVELS}),
    "Q5_K": Way(
        "q5_k",
        {
            "codes": _fives(
                256, 0, lambda raw: bits(raw[:, 48:], (0, 4), 15, 32) | bits(raw[:, 16:48], range(8), 1, 32) << 4
            ),
            "scales": BOTH,
            "levels": LEVELS,
        },
    ),
    "Q6_K": Way(
        "q6_k",
        {
            "codes": _fives(
                256,
                32,
                lambda raw: bits(raw[:, :128], (0, 4), 15, 64) | bits(raw[:, 128:192], (0, 2, 4, 6), 3, 32) << 4,
            ),
            "scales": _halves(208, 210),
            "levels": Part(16, torch.int8, lambda raw: raw[:, 192:208].view(torch.int8)),
        },
    ),
}
