"""What kind of file a suffix names, and how each kind of text file is cut into rows and a row is read.

Cutting finds where each row lies and is cheap; reading parses one row. So a file of any size can be indexed, dealt out
or skipped through without being parsed. Knows bytes; knows no path and no compression.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, Protocol

SEPARATOR = b"<|endoftext|>"
LONGEST = 1 << 22  # bytes of a document in a text file; a longer one is cut between lines
BLOCK = 1 << 20


class Cut(NamedTuple):
    """A row not yet read. number: of its line, row or document, from 1. start: its first byte in the file."""

    number: int
    start: int
    raw: bytes


class Kind(Protocol):
    @property
    def unit(self) -> str:
        """What is counted: line, row or document."""

    def head(self, file: BinaryIO) -> Any:
        """What `read` needs to know from the file's beginning. Raises ValueError, saying what is wrong."""

    def cut(self, file: BinaryIO) -> Iterator[Cut]:
        """The rows that are not blank, in order. Raises ValueError where it cannot be told where a row ends."""

    def read(self, raw: bytes, head: Any) -> dict[str, Any]:
        """A row's fields. Raises ValueError, saying what is wrong with the row."""


@dataclass(frozen=True)
class Text:
    """Documents with <|endoftext|> between them, or one. A row has the field "text"."""

    unit: str = "document"

    def head(self, file: BinaryIO) -> None: ...

    def cut(self, file: BinaryIO) -> Iterator[Cut]:
        buffer, start, number = b"", 0, 1
        while True:
            block = file.read(BLOCK)
            buffer += block
            while (
                (end := buffer.find(SEPARATOR)) >= 0 or len(buffer) > LONGEST + len(SEPARATOR) or (buffer and not block)
            ):
                whole = 0 <= end <= LONGEST
                end = end if whole else len(buffer) if len(buffer) <= LONGEST else _between_lines(buffer)
                if buffer[:end].strip():
                    yield Cut(number, start, buffer[:end])
                number += 1
                taken = end + len(SEPARATOR) if whole else end
                buffer, start = buffer[taken:], start + taken
            if not block:
                return

    def read(self, raw: bytes, head: None) -> dict[str, Any]:
        return {"text": raw.decode("utf-8-sig").strip("\r\n")}


def _between_lines(buffer: bytes) -> int:
    """Where to cut `buffer` near LONGEST: after a line, or else between two characters."""
    at = buffer.rfind(b"\n", 0, LONGEST) + 1
    if not at:
        at = LONGEST
        while buffer[at] & 0xC0 == 0x80 and at > LONGEST - 4:
            at -= 1
    return at


@dataclass(frozen=True)
class Lines:
    """One JSON object a line."""

    unit: str = "line"

    def head(self, file: BinaryIO) -> None: ...

    def cut(self, file: BinaryIO) -> Iterator[Cut]:
        start = 0
        for number, line in enumerate(file, 1):
            if not line.isspace():
                yield Cut(number, start, line)
            start += len(line)

    def read(self, raw: bytes, head: None) -> dict[str, Any]:
        return _object(raw)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8-sig").rstrip("\r\n"))
    except json.JSONDecodeError as error:
        line = f" of its line {error.lineno}" if error.lineno > 1 else ""
        raise ValueError(f"this is not JSON: {error.msg} at column {error.colno}{line}") from None
    except RecursionError:
        raise ValueError("this JSON is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"this is not an object with fields, only {type(value).__name__}")
    return value


@dataclass(frozen=True)
class Json:
    """A list of JSON objects; or objects one after another, as files of lines called .json have them."""

    unit: str = "row"
    mark = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[][{},"]', re.DOTALL)

    def head(self, file: BinaryIO) -> None: ...

    def cut(self, file: BinaryIO) -> Iterator[Cut]:
        buffer, at = file.read(BLOCK), 0  # at: where the buffer begins in the file
        begin = len(buffer) - len(buffer.removeprefix(b"\xef\xbb\xbf").lstrip())
        listed = buffer[begin : begin + 1] == b"["  # else rows lie side by side
        begin, number, depth = begin + listed, 0, int(listed)
        scanned, more = begin, True
        while True:
            for mark in self.mark.finditer(buffer, scanned):
                if (token := mark[0]) == b'"' and more:  # a string that goes on behind the buffer
                    break
                scanned = mark.end()
                depth += (token in b"[{") - (token in b"]}")
                if listed and (depth == 0 or (depth == 1 and token == b",")):
                    end = mark.start()
                elif not listed and depth == 0 and token in b"]}":
                    end = mark.end()
                else:
                    continue
                if buffer[begin:end].strip():
                    number += 1
                    yield Cut(number, at + begin, buffer[begin:end])
                begin = scanned
                if listed and depth == 0:
                    if buffer[begin:].strip() or any(block.strip() for block in iter(lambda: file.read(BLOCK), b"")):
                        raise ValueError("there is more behind the end of the list")
                    return
            if not more:
                break
            block = file.read(BLOCK)
            more = bool(block)
            buffer, at, scanned, begin = buffer[begin:] + block, at + begin, scanned - begin, 0
        if listed:
            raise ValueError(f"the list is not closed: the file ends in row {number + 1}")
        if buffer.strip():
            yield Cut(number + 1, at, buffer)

    def read(self, raw: bytes, head: None) -> dict[str, Any]:
        return _object(raw)


@dataclass(frozen=True)
class Columns:
    """Values between delimiters, quoted as spreadsheets do; the first row names the columns."""

    delimiter: str
    unit: str = "line"

    def head(self, file: BinaryIO) -> list[str]:
        first = next(self._rows(file), None)
        if first is None:
            return []
        names = self._values(first.raw)
        if "" in names or len(set(names)) < len(names):
            raise ValueError(f"the first line must give every column a name of its own, and is {', '.join(names)}")
        return names

    def cut(self, file: BinaryIO) -> Iterator[Cut]:
        rows = self._rows(file)
        next(rows, None)
        return rows

    def _rows(self, file: BinaryIO) -> Iterator[Cut]:
        taken: list[bytes] = []

        def lines() -> Iterator[str]:
            for line in file:
                taken.append(line)
                yield line.decode("latin-1")  # every byte is one character; only where rows end matters

        start, number, rows = 0, 1, self._reader(lines())
        try:
            for row in rows:
                raw = b"".join(taken)
                if any(row):
                    yield Cut(number, start, raw)
                start, number = start + len(raw), number + len(taken)
                taken.clear()
        except csv.Error as error:
            raise ValueError(f"line {number}: {error}") from None

    def read(self, raw: bytes, head: list[str]) -> dict[str, Any]:
        values = self._values(raw)
        if len(values) != len(head):
            raise ValueError(f"this row has {len(values)} columns, and the first line names {len(head)}")
        return dict(zip(head, values, strict=True))

    def _values(self, raw: bytes) -> list[str]:
        return next(self._reader(io.StringIO(raw.decode("utf-8-sig"), newline="\n")))

    def _reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the module's own, 128 KiB, is less than a long text has
        return csv.reader(lines, delimiter=self.delimiter, strict=True)


PLAIN = frozenset(".txt .text .md .markdown .rst .tex .html .htm .xml .org .log".split())
CODE = frozenset(
    ".py .pyi .ipynb .c .h .cc .cpp .cxx .hpp .hh .cu .cuh .java .kt .scala .go .rs .swift .m .mm .js .jsx .ts .tsx "
    ".mjs .css .scss .vue .rb .php .pl .lua .r .jl .hs .ml .fs .clj .ex .exs .erl .cs .vb .dart .zig .nim .sql .sh "
    ".bash .ps1 .bat .cmake .proto .toml .yaml .yml .ini .cfg .jinja".split()
)
LISTS = frozenset({".json", ".csv", ".tsv"})  # data as such; in a folder of code, texts like the rest
PARQUET = ".parquet"


def kind(suffix: str) -> Kind | None:
    """How files with this suffix, in small letters, are cut and read; None for parquet and for what is not read."""
    if suffix in PLAIN or suffix in CODE:
        return Text()
    if suffix in (".csv", ".tsv"):
        return Columns("," if suffix == ".csv" else "\t")
    if suffix in (".jsonl", ".ndjson"):
        return Lines()
    return Json() if suffix == ".json" else None
