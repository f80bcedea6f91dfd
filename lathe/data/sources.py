"""A path or a name becomes a sequence of documents, each read from its file when it is asked for; knows no tokens.

python-manual       the manual inside every CPython
FILE.txt            one document, or several with <|endoftext|> between them
FILE.jsonl          one document a line: {"text": ...}
FOLDER              all of these files below it, in the order of their paths
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from lathe.errors import DataError, MissingError, did_you_mean

SEPARATOR = b"<|endoftext|>"


def find(name: str) -> Sequence[str]:
    """The documents that `name`, a path or one of `NAMED`, stands for.

    Raises:
        MissingError: there is no such file, folder or name.
        DataError: the files are of no known kind, or hold no text.
    """
    if name in NAMED:
        return NAMED[name]()
    path = Path(name).expanduser()
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.suffix in KINDS and not file.name.startswith(".")]
    elif path.exists():
        files = [path]
    else:
        named = f"Data is a file, a folder, or one of: {', '.join(NAMED)}."
        raise MissingError(f'There is no data "{name}".', named, did_you_mean(name, NAMED))
    if path.suffix not in KINDS and not path.is_dir():
        raise DataError(f"{path} is of a kind that is not read.", f"Data is {', '.join(KINDS)} or a folder of them.")
    documents = Documents.scan(files)
    if not documents:
        raise DataError(f"{path} holds no text.", f"Data is {', '.join(KINDS)} or a folder of them.")
    return documents


def manual() -> Sequence[str]:
    """The topics of Python's language reference that `help()` shows; 79 texts, about half a million characters."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        found = "This Python came without its manual (the module pydoc_data.topics)."
        raise MissingError(found, fix="Install the whole standard library, or name a file of text.") from None
    return [topics[name] for name in sorted(topics)]


NAMED: dict[str, Callable[[], Sequence[str]]] = {"python-manual": manual}


# ---- documents in files ---------------------------------------------------------------------------------------------
Span = tuple[int, int]  # where a document starts and ends in its file, in bytes


@dataclass(frozen=True, eq=False)
class Documents(Sequence[str]):
    """Documents that lie in files; only where each one lies is kept in memory.

    spans: (N, 3) int64: the number of the file, the first byte, and the one after the last.
    """

    files: Sequence[Path]
    spans: np.ndarray

    @staticmethod
    def scan(files: Sequence[Path]) -> Documents:
        found = [(number, *span) for number, file in enumerate(files) for span in _spans(file)]
        return Documents(files, np.array(found, dtype=np.int64).reshape(-1, 3))

    def __len__(self) -> int:
        return len(self.spans)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Documents: ...
    def __getitem__(self, index: int | slice) -> str | Documents:
        if isinstance(index, slice):
            return Documents(self.files, self.spans[index])
        number, start, end = (int(x) for x in self.spans[index])
        path = self.files[number]
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(end - start)
        try:
            return KINDS[path.suffix].read(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            found = f"{path} is not UTF-8: byte {start + error.start} is {error.object[error.start]:#04x}."
            raise DataError(found, fix=f"Convert it: iconv -t utf-8 {path}.") from None
        except ValueError as error:
            raise DataError(f"{path}, line {_line(path, start)}: {error}.") from None

    def pick(self, indices: Sequence[int] | np.ndarray) -> Documents:
        return Documents(self.files, self.spans[np.asarray(indices, dtype=np.int64)])


def _spans(path: Path) -> Iterator[Span]:
    """The documents of one file that are not blank."""
    if path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        separator, start = KINDS[path.suffix].separator, 0
        while start < len(data):
            end = data.find(separator, start)
            end = len(data) if end < 0 else end
            if data[start : min(end, start + 4096)].strip() or data[start:end].strip():
                yield start, end
            start = end + len(separator)


def _line(path: Path, start: int) -> int:
    with path.open("rb") as file:
        return file.read(start).count(b"\n") + 1


def _text(row: str) -> str:
    try:
        value = json.loads(row)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        keys = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise ValueError(f'there is no "text" in this row, only {keys}')
    return value["text"]


@dataclass(frozen=True)
class Kind:
    """How files with one suffix are cut into documents."""

    separator: bytes
    read: Callable[[str], str]


KINDS = {".txt": Kind(SEPARATOR, lambda text: text.strip("\r\n")), ".jsonl": Kind(b"\n", _text)}


# ---- training and validation ----------------------------------------------------------------------------------------
def split(documents: Sequence[str], fraction: float, seed: int) -> tuple[Sequence[str], Sequence[str]]:
    """Documents to train on, and a random `fraction` of them, at least one, held out to validate on.

    Whole documents are held out, so that no sentence is on both sides. A single document gives up its end instead.
    """
    if fraction == 0:
        return documents, []
    if len(documents) == 1:
        text = documents[0]
        middle = int(len(text) * (1 - fraction))
        middle = text.find("\n", middle) + 1 or middle  # at a line's end, where there are lines
        return [text[:middle]], [text[middle:]]
    held = min(max(1, round(len(documents) * fraction)), len(documents) - 1)
    order = np.random.default_rng(seed).permutation(len(documents))
    pick = documents.pick if isinstance(documents, Documents) else lambda chosen: [documents[i] for i in chosen]
    return pick(np.sort(order[held:])), pick(np.sort(order[:held]))
