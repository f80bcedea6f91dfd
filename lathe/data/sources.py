"""What the user names as data becomes rows, or texts: a path, a pattern, a name, or several with weights.

    notes.txt  books/  'data/*.jsonl.zst'  table.csv  part.parquet     files, folders and patterns
    org/name  org/name:test  https://.../rows.json                     data sets at the Hub, and addresses
    Alpaca  TinyStories  ...                                           well-known data by name (presets)
    python-manual                                                      the manual inside every CPython
    a.jsonl:0.7 b/:0.3                                                 mixed, seven to three
    big.jsonl#1000                                                     the first 1,000 rows

Knows no format of conversations and no tokens.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from glob import has_magic
from itertools import islice
from pathlib import Path

import numpy as np

from lathe.data import hubdata
from lathe.data.files import File, Part, Piece, Place, Record, below, is_read
from lathe.data.presets import named, presets
from lathe.data.rows import Rows, Texts, interleaved, text
from lathe.errors import DataError, MissingError, UsageError, did_you_mean

READ = "Data is text or code, .jsonl, .json, .csv, .tsv, .parquet, any of them compressed, or a folder of them."
LIMIT = re.compile(r"#(\d+)$")
WEIGHT = re.compile(r":(\d*\.?\d+(?:[eE]-?\d+)?)$")


@dataclass(frozen=True)
class Source:
    """One of the things named as data. name: as the user wrote it. limit: only so many rows, from the first."""

    name: str
    parts: tuple[Part, ...]
    weight: float | None = None
    limit: int | None = None

    def pieces(self) -> Iterator[Piece]:
        """Its rows in order, not yet parsed; nothing is kept in memory."""
        return islice((piece for part in self.parts for piece in part.pieces()), self.limit)

    def rows(self) -> Rows:
        return Rows.of(self.parts)[: self.limit]


def read(data: str | Sequence[str]) -> list[Source]:
    """What each word of `data` names.

    Raises:
        MissingError: there is no such file, folder or name.
        DataError: files of no known kind.
        UsageError: weights that are no weights, or given to some only.
    """
    words = [data] if isinstance(data, str) else data
    found = [_source(each) for word in words for each in _meant(word)]
    if not found:
        raise UsageError("No data is named.", READ)
    unweighted = [source.name for source in found if source.weight is None]
    if 0 < len(unweighted) < len(found):
        raise UsageError(f"{unweighted[0]} has no weight, and others have.", "Give one to each, or to none.")
    return found


def rows(data: str | Sequence[str]) -> Rows:
    """The rows of all sources, by number.

    Several sources follow each other. With weights they alternate, so that every beginning has them in their
    proportion: all rows come at least once, those of a source with more weight than rows again.

    Raises: as `read`, and DataError for a file that cannot be cut into rows; a row that cannot be read says so when it
    is asked for.
    """
    sources = read(data)
    found = [source.rows() for source in sources]
    for source, some in zip(sources, found, strict=True):
        if not some:
            raise DataError(f"{source.name} holds nothing.", READ)
    tables = [table for some in found for table in some.tables]
    starts = np.cumsum([0, *(sum(map(len, some.tables)) for some in found)])
    places = [some.order + start for some, start in zip(found, starts, strict=False)]
    weights = [source.weight for source in sources if source.weight is not None]
    return Rows(tables, interleaved(places, weights) if weights else np.concatenate(places))


def texts(data: str | Sequence[str], column: str | None = None) -> Texts:
    """The texts of all sources, by number. column: the field that holds them; by default one of `rows.COLUMNS`."""
    return Texts(rows(data), column)


def stream(data: str | Sequence[str], column: str | None = None) -> Iterator[str]:
    """The texts of all sources in order, one in memory at a time; weights do not count."""
    return (text(piece.read(), column) for source in read(data) for piece in source.pieces())


# ---- words to files -------------------------------------------------------------------------------------------------
def _meant(word: str) -> Sequence[str]:
    preset = named(word)
    return (word,) if preset is None else preset.data


def _source(word: str) -> Source:
    name, limit = _tail(word, LIMIT)
    name, weight = _tail(name, WEIGHT)
    if weight is not None and not float(weight):
        raise UsageError(f"The weight in {word} is 0.", "It must be above 0.", "Leave the source out.")
    if limit is not None and not int(limit):
        raise UsageError(f"{word} asks for no rows.", "The number behind # must be above 0.")
    parts = _parts(name)
    return Source(name, tuple(parts), None if weight is None else float(weight), None if limit is None else int(limit))


def _tail(word: str, tail: re.Pattern[str]) -> tuple[str, str | None]:
    """A word without its tail, and the number in it, where there is one and `word` is not a file's own name."""
    found = tail.search(word)
    if found and found.start() and not Path(word).expanduser().exists():
        return word[: found.start()], found[1]
    return word, None


def _parts(name: str) -> Sequence[Part]:
    if name in NAMED:
        return [NAMED[name]]
    path = Path(name).expanduser()
    if name.startswith(("http://", "https://")) or (hubdata.REPO.fullmatch(name) and not _looks_local(path)):
        return hubdata.parts(name)
    if path.is_dir():
        if found := below(path):
            return found
        raise DataError(f"{path} holds no files that are read.", READ)
    if not path.exists() and has_magic(name):
        paths = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    elif path.exists():
        paths = [path]
    else:
        paths = []
    if not paths:
        known = [*NAMED, *(preset.name for preset in presets().values())]
        told = f"Data is a file, a folder, a pattern, a data set's id, or one of: {', '.join(known)}."
        raise MissingError(f'There is no data "{name}".', told, did_you_mean(name, known))
    for path in paths:
        if path.is_file() and not is_read(path):
            raise DataError(f"{path} is of a kind that is not read.", READ)
    return [file for path in paths for file in (below(path) if path.is_dir() else [File(path)])]


def _looks_local(path: Path) -> bool:
    """Whether a path that could be a data set's id is none: it is there, it is a file's, or its folder is there."""
    return (
        path.exists()
        or (len(path.parts) == 2 and is_read(path))
        or path.parent.is_dir()
        or path.parts[0] in (".", "..")
    )


@dataclass(frozen=True)
class Manual:
    """The topics of Python's language reference that `help()` shows; 79 texts, about half a million characters."""

    name = "python-manual"

    def texts(self) -> list[str]:
        try:
            from pydoc_data.topics import topics
        except ImportError:
            found = "This Python came without its manual (the module pydoc_data.topics)."
            raise MissingError(found, fix="Install the whole standard library, or name a file of text.") from None
        return [topics[name] for name in sorted(topics)]

    def pieces(self) -> Iterator[Piece]:
        table = self.table()
        for index, record in enumerate(table):
            yield Piece(len(record.fields["text"]), partial(table.__getitem__, index))

    def table(self) -> list[Record]:
        return [
            Record({"text": text}, Place(self.name, "document", number)) for number, text in enumerate(self.texts(), 1)
        ]

    def identity(self) -> str:
        return hashlib.blake2b("\0".join(self.texts()).encode(), digest_size=16).hexdigest()


NAMED: dict[str, Part] = {Manual.name: Manual()}
