"""A parquet file becomes rows: a row group's part at a time in order, or by number with one row group in memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lathe.data.files import Piece, Place, Record
from lathe.errors import DataError, MissingError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

AT_ONCE = 256  # rows turned from columns into rows at a time


def opened(path: Path, name: str) -> ParquetFile:
    """Raises MissingError without the library, DataError for a file that is not what it is called."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        found = f"{name} is a parquet file, and the library that reads it is not installed."
        raise MissingError(found, fix="pip install 'lathe-llm[data]'.") from None
    try:
        return ParquetFile(path)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, OSError) as error:
        raise DataError(f"{name} is not a parquet file that can be read: {error}.", fix="Fetch it again.") from None


def pieces(path: Path, name: str) -> Iterator[Piece]:
    """The rows in order; a stretch of them is decoded when the first of it is read."""
    with opened(path, name) as file:
        number = 0
        for group in range(file.num_row_groups):
            told = file.metadata.row_group(group)
            size = told.total_byte_size // max(1, told.num_rows)
            decoded = _Group(path, name, group, number)
            for index in range(told.num_rows):
                yield Piece(size, partial(decoded.record, index))
            number += told.num_rows


class _Group:
    """One row group, decoded from its beginning as far as was asked for; earlier rows of it are let go."""

    def __init__(self, path: Path, name: str, group: int, before: int) -> None:
        self.path, self.name, self.group, self.before = path, name, group, before
        self.start, self.rows = 0, list[dict[str, Any]]()
        self.batches: Iterator[Any] | None = None

    def record(self, index: int) -> Record:
        assert index >= self.start, "rows are read in order"
        while self.batches is None or index >= self.start + len(self.rows):
            if self.batches is None:
                self.batches = opened(self.path, self.name).iter_batches(AT_ONCE, row_groups=[self.group])
            self.start += len(self.rows)
            self.rows = _decoded(self.batches, self.name, self.before + self.start)
        return Record(self.rows[index - self.start], Place(self.name, "row", self.before + index + 1))


def _decoded(batches: Iterator[Any], name: str, before: int) -> list[dict[str, Any]]:
    import pyarrow

    try:
        return next(batches).to_pylist()
    except (pyarrow.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name}, row {before + 1} or one after it: {error}.", fix="Fetch it again.") from None


class Groups:
    """The rows of a parquet file by number; the row group that was asked for last is in memory."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        with opened(path, name) as file:
            counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self.ends = np.cumsum(np.array(counts, dtype=np.int64))
        self.group = -1
        self.table: Any = None

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> Record:
        group = int(np.searchsorted(self.ends, index, side="right"))
        if group != self.group:
            with opened(self.path, self.name) as file:
                self.group, self.table = group, file.read_row_group(group)
        before = int(self.ends[group - 1]) if group else 0
        (row,) = self.table.slice(index - before, 1).to_pylist()
        return Record(row, Place(self.name, "row", index + 1))
