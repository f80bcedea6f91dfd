"""A tensor on disk becomes a Ref: shape, dtype, and how to read any box of it; nothing is read before `read`.

Slicing, joining or reordering a Ref gives another Ref, so names and layouts are settled on headers alone and only what
a rank or a slot really wants is ever fetched. A read of a plain mapped file is a view of it, not a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from lathe.errors import CheckpointError

Box = tuple[slice, ...]  # one slice with step 1 and known ends per dimension
PIECE = 1 << 24  # elements converted at once


def possible(shape: Sequence[Any]) -> bool:
    """Whether what a file gives as a shape is one: sizes, not too many, whose product 64 bits can count in bytes."""
    return (
        len(shape) <= 64
        and all(type(n) is int and 0 <= n < 1 << 59 for n in shape)
        and prod(n for n in shape if n) < 1 << 59
    )


@dataclass(frozen=True, eq=False)
class Ref:
    """A tensor not yet read.

    `fetch(box)` returns the part of the tensor inside `box`, of dtype `dtype`; it may be a view of a mapped file, which
    is private to this process (writing to it never reaches the disk). `source` names where it came from, for errors.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    fetch: Callable[[Box], Tensor]
    source: str = ""

    @staticmethod
    def of(tensor: Tensor, source: str = "") -> Ref:
        """A Ref to a tensor in memory."""
        return Ref(tuple(tensor.shape), tensor.dtype, lambda box: tensor[box], source)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The whole tensor."""
        return self.fetch(tuple(slice(0, n) for n in self.shape))

    def pieces(self) -> Iterator[Tensor]:
        """The whole tensor, some rows at a time, each piece contiguous: what is written is never whole in memory."""
        if not self.shape:
            yield self.read()
            return
        step = max(PIECE // max(prod(self.shape[1:]), 1), 1)
        for start in range(0, self.shape[0], step):
            yield self[start : min(start + step, self.shape[0])].read().contiguous()

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Ref:
        """A box of this tensor; reading it reads no more than the box."""
        given = index if isinstance(index, tuple) else (index,)
        offsets, shape = [0] * len(self.shape), list(self.shape)
        for dim, part in enumerate(given):
            start, stop, step = part.indices(self.shape[dim])
            assert step == 1, "a Ref is sliced without steps"
            offsets[dim], shape[dim] = start, max(stop - start, 0)

        def fetch(box: Box) -> Tensor:
            return self.fetch(tuple(slice(o + b.start, o + b.stop) for o, b in zip(offsets, box, strict=True)))

        return Ref(tuple(shape), self.dtype, fetch, self.source)

    def transposed(self) -> Ref:
        """Rows and columns of a matrix, or of each matrix of a stack, exchanged."""
        *stack, rows, columns = self.shape

        def fetch(box: Box) -> Tensor:
            return self.fetch((*box[:-2], box[-1], box[-2])).transpose(-1, -2)

        return Ref((*stack, columns, rows), self.dtype, fetch, self.source)

    def reordered(self, view: Sequence[int], axes: Sequence[int], dim: int = 0) -> Ref:
        """The rows (dimension `dim`) seen as a block of shape `view`, its axes permuted, flattened again.

        Reading some rows reads the span of rows they come from.
        """
        index = torch.arange(self.shape[dim]).view(*view).permute(*axes).flatten()

        def fetch(box: Box) -> Tensor:
            rows = index[box[dim]]
            low, high = (int(rows.min()), int(rows.max()) + 1) if len(rows) else (0, 0)
            return self.fetch((*box[:dim], slice(low, high), *box[dim + 1 :])).index_select(dim, rows - low)

        return Ref(self.shape, self.dtype, fetch, self.source)

    def cat(self, *others: Ref, dim: int = 0) -> Ref:
        """This tensor and others one below the other, along `dim`; of different dtypes, in one that holds them all.

        Raises:
            CheckpointError: their shapes differ elsewhere.
        """
        parts = _alike((self, *others), dim)
        edges = [0]
        for part in parts:
            edges.append(edges[-1] + part.shape[dim])

        def fetch(box: Box) -> Tensor:
            def of(part: Ref, start: int, stop: int) -> Tensor:
                return part.fetch((*box[:dim], slice(start, stop), *box[dim + 1 :]))

            start, stop = box[dim].start, box[dim].stop
            cut = [
                of(part, max(start, lo) - lo, min(stop, hi) - lo)
                for part, lo, hi in zip(parts, edges, edges[1:], strict=False)
                if start < hi and lo < stop
            ]
            if not cut:
                return of(parts[0], 0, 0)
            return torch.cat(cut, dim) if len(cut) != 1 else cut[0]

        return Ref((*self.shape[:dim], edges[-1], *self.shape[dim + 1 :]), parts[0].dtype, fetch, self.source)

    def stack(self, *others: Ref) -> Ref:
        """This tensor and others of the same shape as one, along a new first dimension; dtypes as in `cat`.

        Raises:
            CheckpointError: they have different shapes.
        """
        parts = _alike((self, *others))

        def fetch(box: Box) -> Tensor:
            if box[0].start == box[0].stop:
                return parts[0].fetch(box[1:])[None][:0]
            return torch.stack([part.fetch(box[1:]) for part in parts[box[0]]])

        return Ref((len(parts), *self.shape), parts[0].dtype, fetch, self.source)

    def unstack(self) -> list[Ref]:
        """The tensors along the first dimension, the inverse of `stack`."""

        def one(n: int) -> Ref:
            return Ref(self.shape[1:], self.dtype, lambda box: self.fetch((slice(n, n + 1), *box))[0], self.source)

        return [one(n) for n in range(self.shape[0])]

    def plus(self, amount: float) -> Ref:
        """Every element with `amount` added, in float32: a narrower type would lose what is small beside it."""
        return Ref(self.shape, torch.float32, lambda box: self.fetch(box).float() + amount, self.source)

    def microscaled(self, scales: Ref) -> Ref:
        """Floats of 4 bits, two to a byte, the first in its low half, as blocks of 32 that share a power of two: MXFP4.

        This tensor is ... G 16 of bytes and `scales` is ... G of exponents, with 127 for 1. Gives ... 32 * G in
        bfloat16, which holds them exactly. OCP Microscaling Formats 1.0
        """
        floats = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.bfloat16)
        floats = torch.cat((floats, -floats))

        def fetch(box: Box) -> Tensor:
            low, high = box[-1].start // 32, -(-box[-1].stop // 32)
            raw = self.fetch((*box[:-1], slice(low, high), slice(0, 16)))
            powers = scales.fetch((*box[:-1], slice(low, high))).int() - 127
            pairs = torch.stack((floats[(raw & 15).int()], floats[(raw >> 4).int()]), dim=-1)  # ... G 16 2
            values = torch.ldexp(pairs.flatten(-2), powers[..., None]).flatten(-2).to(torch.bfloat16)
            return values[..., box[-1].start - 32 * low : box[-1].stop - 32 * low]

        return Ref((*scales.shape[:-1], 32 * scales.shape[-1]), torch.bfloat16, fetch, self.source)

    def to(self, dtype: torch.dtype) -> Ref:
        """Every element converted to `dtype` when read, some rows at a time: what it was is never whole in memory."""
        if dtype == self.dtype:
            return self

        def fetch(box: Box) -> Tensor:
            lengths = [part.stop - part.start for part in box]
            if prod(lengths) <= PIECE:
                return self.fetch(box).to(dtype)
            rows, step = box[0], max(PIECE // prod(lengths[1:]), 1)
            starts = range(rows.start, rows.stop, step)
            out = self.fetch((slice(rows.start, rows.start), *box[1:])).new_empty(lengths, dtype=dtype)
            for start, part in zip(starts, out.split(step), strict=True):
                part.copy_(self.fetch((slice(start, start + len(part)), *box[1:])))
            return out

        return Ref(self.shape, dtype, fetch, self.source)


def _alike(parts: Sequence[Ref], but: int | None = None) -> Sequence[Ref]:
    """The parts of one tensor, checked to have the same shape but for dimension `but`, all in one dtype."""
    first = parts[0]
    for part in parts:
        if len(part.shape) <= (-1 if but is None else but) or _without(part.shape, but) != _without(first.shape, but):
            raise CheckpointError(
                f"{first.source} has shape {list(first.shape)} and {part.source} has {list(part.shape)}.",
                "They are parts of one tensor, whose shapes should agree.",
            )
    dtypes = {part.dtype for part in parts}
    if len(dtypes) == 1:
        return parts
    # every narrower floating-point number is one of these too; torch itself promotes no 8-bit ones
    return [part.to(torch.float64 if torch.float64 in dtypes else torch.float32) for part in parts]


def _without(shape: tuple[int, ...], dim: int | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and after a dimension."""
    return (shape, ()) if dim is None else (shape[:dim], shape[dim + 1 :])
