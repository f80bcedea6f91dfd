"""Rows of several tables, by number and in any order, and the texts in them; each is read when it is asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np

from lathe.data.files import Part, Record, Table
from lathe.errors import DataError

COLUMNS = ("text", "content")  # where the text of a row is, unless the user says


@dataclass(frozen=True, eq=False)
class Rows(Sequence[Record]):
    """Rows of several tables, in any order. order: (N,) int64: the number of a row in all tables together."""

    tables: Sequence[Table]
    order: np.ndarray

    @staticmethod
    def of(parts: Sequence[Part]) -> Rows:
        tables = [part.table() for part in parts]
        return Rows(tables, np.arange(sum(map(len, tables)), dtype=np.int64))

    @cached_property
    def ends(self) -> list[int]:
        return np.cumsum([len(table) for table in self.tables]).tolist()

    def __len__(self) -> int:
        return len(self.order)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Record | Rows:
        if isinstance(index, slice):
            return Rows(self.tables, self.order[index])
        number = int(self.order[index])
        table = bisect_right(self.ends, number)
        return self.tables[table][number - (self.ends[table - 1] if table else 0)]

    def pick(self, indices: Sequence[int] | np.ndarray) -> Rows:
        """The rows at these numbers."""
        return Rows(self.tables, self.order[np.asarray(indices, dtype=np.int64)])


@dataclass(frozen=True, eq=False)
class Texts(Sequence[str]):
    """The texts in rows. column: the field that holds them; by default one of `COLUMNS`."""

    rows: Rows
    column: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Texts: ...
    def __getitem__(self, index: int | slice) -> str | Texts:
        if isinstance(index, slice):
            return Texts(self.rows[index], self.column)
        return text(self.rows[index], self.column)

    def pick(self, indices: Sequence[int] | np.ndarray) -> Texts:
        return Texts(self.rows.pick(indices), self.column)


def text(record: Record, column: str | None = None) -> str:
    """The text of a row. Raises DataError where there is none in it."""
    for name in COLUMNS if column is None else (column,):
        if isinstance(value := record.fields.get(name), str):
            return value
    names = ", ".join(map(str, record.fields)) or "nothing"
    raise DataError(f'{record.place}: there is no "{column or COLUMNS[0]}" in this row, only {names}.')


def interleaved(places: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Items of several sequences in one, in proportion to their weights, each sequence from its start and again.

    As long as it takes for every item to come once. Next is always the sequence that is furthest behind its share.
    """
    shares = np.array(weights, dtype=np.float64) / sum(weights)
    counts = [int(max(len(some) / share for some, share in zip(places, shares, strict=True)) * s + 0.5) for s in shares]
    counts = [max(count, len(some)) for count, some in zip(counts, places, strict=True)]
    # The k-th item of a sequence with share s is due at (k + 1/2) / s; a stable sort gives ties to the earlier one.
    due = np.concatenate([(np.arange(count) + 0.5) / share for count, share in zip(counts, shares, strict=True)])
    items = np.concatenate([np.resize(some, count) for some, count in zip(places, counts, strict=True)])
    return items[np.argsort(due, kind="stable")]
