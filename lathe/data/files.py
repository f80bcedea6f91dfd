"""A file becomes rows that each know where they stand in it: read in order as they come, or by number with an index.

Read in order, a file is never wholly in memory and a compressed one is never on disk unpacked. By number, only where
each row lies is kept (24 bytes a row), and a compressed file is unpacked into the cache first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from lathe.data.kinds import CODE, LISTS, PARQUET, Cut, Kind, Text, kind
from lathe.data.unpacking import COMPRESSED, suffix, unpacked, unpacked_copy
from lathe.errors import DataError


@dataclass(frozen=True)
class Place:
    """Where a row stands: `train.jsonl, line 12`."""

    file: str
    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}"


@dataclass(frozen=True, eq=False)
class Record:
    """A row as its file has it: values by the names of its fields."""

    fields: dict[str, Any]
    place: Place


@dataclass(frozen=True, eq=False)
class Piece:
    """A row that is not yet parsed. size: in bytes, about. read: its record; raises DataError."""

    size: int
    read: Callable[[], Record]


class Table(Protocol):
    """The rows of one file, by number from 0."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...


class Part(Protocol):
    """One file, or what is as good as one; small, so that it can be sent to another process."""

    def pieces(self) -> Iterator[Piece]:
        """Its rows in order."""

    def table(self) -> Table:
        """Its rows by number."""

    def identity(self) -> str:
        """A text that is another one when the rows are others."""


@dataclass(frozen=True)
class File:
    """A file on this machine. text: it is a text, whatever its suffix says. name: as errors call it; or its path."""

    path: Path
    text: bool = False
    name: str = ""

    @property
    def shown(self) -> str:
        return self.name or str(self.path)

    def pieces(self) -> Iterator[Piece]:
        if (found := self._kind()) is None:
            from lathe.data.parquet import pieces

            yield from pieces(self.path, self.shown)
            return
        head = self._head(found)
        for cut in self._cuts(found):
            yield Piece(len(cut.raw), partial(self._record, found, head, cut))

    def table(self) -> Table:
        if (found := self._kind()) is None:
            from lathe.data.parquet import Groups

            return Groups(self.path, self.shown)
        return Indexed(self, found)

    def identity(self) -> str:
        """The content of a file of up to 64 MiB; of a larger one its size, time and parts of its content."""
        size, content = self.path.stat().st_size, hashlib.blake2b(digest_size=16)
        with self.path.open("rb") as file:
            if size <= 1 << 26:
                content.update(file.read())
            else:
                for start in range(0, size, size // 16):
                    file.seek(start)
                    content.update(file.read(1 << 16))
                content.update(str(self.path.stat().st_mtime_ns).encode())
        return f"{size} {content.hexdigest()} {'text' if self.text else suffix(self.path)}"

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Its bytes, unpacked."""
        with unpacked(self.path) as file:
            yield file

    def _kind(self) -> Kind | None:
        return Text() if self.text else kind(suffix(self.path))

    def _head(self, found: Kind) -> Any:
        try:
            with self.open() as file:
                return found.head(file)
        except ValueError as error:
            raise self._wrong(self.shown, error) from None

    def _cuts(self, found: Kind) -> Iterator[Cut]:
        try:
            with self.open() as file:
                yield from found.cut(file)
        except ValueError as error:
            raise self._wrong(self.shown, error) from None

    def _record(self, found: Kind, head: Any, cut: Cut) -> Record:
        place = Place(self.shown, found.unit, cut.number)
        try:
            return Record(found.read(cut.raw, head), place)
        except ValueError as error:
            # A document is a stretch of a file that is read as a text: a byte of it is more use than its number.
            raise self._wrong(self.shown if isinstance(found, Text) else str(place), error, cut.start) from None

    def _wrong(self, where: str, error: ValueError, start: int = 0) -> DataError:
        if isinstance(error, UnicodeDecodeError):
            at = start + error.start
            found = f"{where} is not UTF-8: byte {at} is {error.object[error.start]:#04x}."
            return DataError(found, fix=f"Convert it: iconv -f LATIN1 -t UTF-8 {self.path} > new, if it is Latin-1.")
        return DataError(f"{where}: {error}.")


def is_read(path: Path) -> bool:
    """Whether files called so are read."""
    return suffix(path) == PARQUET or kind(suffix(path)) is not None


def below(folder: Path) -> list[File]:
    """The files below a folder that are read, hidden ones left out, in the order of their paths.

    In a folder of code, settings and tables (.json, .csv) are texts like the rest.
    """
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts) and path.is_file() and is_read(path)
    ]
    code = any(suffix(path) in CODE for path in paths)
    return [File(path, text=code and suffix(path) in LISTS) for path in paths]


class Indexed:
    """The rows of a text file by number: where each one lies is found once, when first asked for."""

    def __init__(self, file: File, kind: Kind) -> None:
        self.file, self.kind = file, kind

    @cached_property
    def spans(self) -> np.ndarray:
        """(N, 3) int64: a row's number in its file, its first byte, and the one after the last."""
        found = [(cut.number, cut.start, cut.start + len(cut.raw)) for cut in self.plain._cuts(self.kind)]
        return np.array(found, dtype=np.int64).reshape(-1, 3)

    @cached_property
    def plain(self) -> File:
        """The file, or an unpacked copy that can be read from any place."""
        path = self.file.path
        if path.suffix.lower() not in COMPRESSED:
            return self.file
        return File(unpacked_copy(path), self.file.text, self.file.shown)

    @cached_property
    def head(self) -> Any:
        return self.plain._head(self.kind)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> Record:
        number, start, end = (int(value) for value in self.spans[index])
        with self.plain.path.open("rb") as file:
            file.seek(start)
            raw = file.read(end - start)
        return self.plain._record(self.kind, self.head, Cut(number, start, raw))
