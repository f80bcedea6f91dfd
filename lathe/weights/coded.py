"""Numbers that are stored as small codes with scales become Refs, computed where they are read; knows no file's words.

    codes N K ── (code - zero) * scale ──> numbers N K        a scale, and a zero, for a block of rows and columns

A Ref of such numbers may also know its codes in a layout that is computed with as it is (`Coded`); rows of it, stacks
of it and others laid below it know theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor

from lathe.weights.tensors import PIECE, Box, Ref


@dataclass(frozen=True, eq=False)
class Coded(Ref):
    """A matrix, or a stack of them, of numbers that are stored as codes.

    kind: how, one of `transforms.kinds.KINDS`, or "" for none of them. parts: what its `pack` gives, each with the
    matrix's leading dimensions. sure: reads what is small, and says whether the parts stand for the very numbers.
    stored: what the file has of its rows, as it lies there, where that is known.
    """

    kind: str = ""
    parts: Mapping[str, Ref] = field(default_factory=dict)
    sure: Callable[[], bool] = lambda: True
    stored: Ref | None = None

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Ref:
        found = super().__getitem__(index)
        rows = not isinstance(index, tuple) or len(index) < len(self.shape)
        if not rows:
            return found
        some = self._like(found, {name: part[index] for name, part in self.parts.items()})
        return some if self.stored is None else replace(some, stored=self.stored[index])

    def reordered(self, view: Sequence[int], axes: Sequence[int], dim: int = 0) -> Ref:
        found = super().reordered(view, axes, dim)
        if dim == len(self.shape) - 1:
            return found
        return self._like(found, {name: part.reordered(view, axes, dim) for name, part in self.parts.items()})

    def cat(self, *others: Ref, dim: int = 0) -> Ref:
        found, same = super().cat(*others, dim=dim), self._same(others)
        if same is None or dim == len(self.shape) - 1:
            return found
        parts = {name: part.cat(*(other.parts[name] for other in same), dim=dim) for name, part in self.parts.items()}
        return self._like(found, parts, same)

    def stack(self, *others: Ref) -> Ref:
        found, same = super().stack(*others), self._same(others)
        if same is None:
            return found
        parts = {name: part.stack(*(other.parts[name] for other in same)) for name, part in self.parts.items()}
        return self._like(found, parts, same)

    def unstack(self) -> list[Ref]:
        each = {name: part.unstack() for name, part in self.parts.items()}
        return [self._like(one, {name: each[name][n] for name in each}) for n, one in enumerate(super().unstack())]

    def _same(self, others: Sequence[Ref]) -> list[Coded] | None:
        """The others, if they are coded alike."""
        alike = all(isinstance(other, Coded) and other.kind == self.kind for other in others)
        return cast("list[Coded]", [*others]) if alike else None

    def _like(self, ref: Ref, parts: Mapping[str, Ref], others: Sequence[Coded] = ()) -> Coded:
        def sure() -> bool:
            return self.sure() and all(other.sure() for other in others)

        return Coded(ref.shape, ref.dtype, ref.fetch, ref.source, kind=self.kind, parts=parts, sure=sure)


def unpacked(words: Ref, bits: int, size: int, dim: int, places: Sequence[int] = ()) -> Ref:
    """Whole numbers of 2, 3, 4 or 8 bits that lie in words of 32 along `dim`, the first in the lowest bits; uint8.

    size: how many there are. places: where in a word its first, second, ... number lies, if not in that order.
    """
    run = 1 if 32 % bits == 0 else bits  # words after which a number begins with a word again
    each, mask = 32 * run // bits, (1 << bits) - 1
    tail = [1] * (len(words.shape) - dim - 1)
    shifts = torch.tensor(places or range(each), dtype=torch.int32).view(-1, *tail) * bits

    def fetch(box: Box) -> Tensor:
        first, last = box[dim].start // each, -(-box[dim].stop // each)
        raw = words.fetch((*box[:dim], slice(first * run, last * run), *box[dim + 1 :]))
        if run == 1:
            found = raw.unsqueeze(dim + 1) >> shifts & mask
        else:  # a number may lie in two words
            low = raw.unflatten(dim, (-1, run)).long() & 0xFFFFFFFF
            low = torch.cat((low, torch.zeros_like(low.narrow(dim + 1, 0, 1))), dim + 1)
            word = shifts.flatten() // 32
            both = low.index_select(dim + 1, word) | low.index_select(dim + 1, word + 1) << 32
            found = both >> shifts % 32 & mask
        found = found.to(torch.uint8).flatten(dim, dim + 1)
        return found.narrow(dim, box[dim].start - first * each, box[dim].stop - box[dim].start)

    return Ref((*words.shape[:dim], size, *words.shape[dim + 1 :]), torch.uint8, fetch, words.source)


def scaled(
    codes: Ref,
    scales: Ref,
    dtype: torch.dtype,
    block: tuple[int, int],
    zeros: Ref | None = None,
    groups: Ref | None = None,
) -> Ref:
    """(codes - zeros) * scales, in float32 and rounded once. N K.

    scales, zeros: one for each block of so many rows and columns. groups: which column of theirs each of the K columns
    has, where that is not told by the block.
    """

    def spread(values: Ref, rows: Tensor, columns: Tensor) -> Tensor:
        low, high = int(rows[0]), int(rows[-1]) + 1
        few = values.fetch((slice(low, high), slice(0, values.shape[1]))).float()
        return few[rows - low][:, columns]

    def some(rows: slice, columns: slice) -> Tensor:
        numbers = codes.fetch((rows, columns)).float()
        across = torch.arange(rows.start, rows.stop) // block[0]
        along = torch.arange(columns.start, columns.stop) // block[1] if groups is None else groups.fetch((columns,))
        if zeros is not None:
            numbers = numbers - spread(zeros, across, along.long())
        return numbers * spread(scales, across, along.long())

    return by_rows(codes.shape, dtype, some, codes.source)


def by_rows(shape: tuple[int, ...], dtype: torch.dtype, some: Callable[[slice, slice], Tensor], source: str) -> Ref:
    """A matrix that is computed some rows at a time, so that what is on the way to a number is never whole in memory.

    some: gives a box of it, of whatever type.
    """

    def fetch(box: Box) -> Tensor:
        rows, columns = box
        count, width = rows.stop - rows.start, columns.stop - columns.start
        out = torch.empty(count, width, dtype=dtype)
        step = max(PIECE // 16 // max(width, 1), 1)
        for start in range(0, count if width else 0, step):
            end = min(start + step, count)
            out[start:end] = some(slice(rows.start + start, rows.start + end), columns)
        return out

    return Ref(shape, dtype, fetch, source)


def made(ref: Ref, shape: tuple[int, ...], dtype: torch.dtype, turn: Callable[[Tensor], Tensor]) -> Ref:
    """Rows of a matrix, whole, turned into rows of another that has as many."""

    def fetch(box: Box) -> Tensor:
        return turn(ref.fetch((*box[:-1], slice(0, ref.shape[-1]))))[..., box[-1]]

    return Ref(shape, dtype, fetch, ref.source)


def folded(flat: Ref, shape: tuple[int, int]) -> Ref:
    """The elements of a tensor that has but one dimension longer than 1, the first, or none at all, as a matrix."""
    ones = (slice(0, 1),) * (len(flat.shape) - 1)

    def fetch(box: Box) -> Tensor:
        if not flat.shape:
            return flat.read().view(1, 1)[box]
        some = flat.fetch((slice(box[0].start * shape[1], box[0].stop * shape[1]), *ones))
        return some.reshape(-1, shape[1])[:, box[1]]

    return Ref(shape, flat.dtype, fetch, flat.source)


def flat(matrix: Ref, ones: int = 0) -> Ref:
    """The elements of a matrix one after the other, in a tensor that has so many further dimensions, all of 1."""
    count, row = matrix.shape[0] * matrix.shape[1], matrix.shape[1]

    def fetch(box: Box) -> Tensor:
        low, high = box[0].start // row, -(-box[0].stop // row)
        some = matrix.fetch((slice(low, high), slice(0, row))).flatten()
        return some[box[0].start - low * row : box[0].stop - low * row].view(-1, *[1] * ones)

    return Ref((count, *[1] * ones), matrix.dtype, fetch, matrix.source)
