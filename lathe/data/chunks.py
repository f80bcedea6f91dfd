"""Sources become chunks: some megabytes of documents, those that are held out marked, and each chunk two files of ids.

Where chunks begin and what is held out depends on the sources alone, never on who makes a chunk, or when. So any number
of processes can make them, in any order, and one that was stopped leaves whole chunks behind.

    000007.ids    the documents' ids, end to end: those to train on, then those held out
    000007.ends   int64: how many are to train on, then where each document ends
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from lathe.data.files import Piece
from lathe.data.rows import text
from lathe.data.sources import Source
from lathe.errors import DataError
from lathe.tokenizer import Tokenizer

SIZE = 1 << 22  # bytes of text in a chunk


@dataclass(frozen=True)
class Recipe:
    """What token files are made from, and how. held: the part of the documents to be held out; seed: which."""

    sources: tuple[Source, ...]
    tokenizer: Tokenizer
    column: str | None = None
    held: float = 0.0
    seed: int = 0
    size: int = SIZE

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("<u4" if self.tokenizer.vocab_size > 1 << 16 else "<u2")

    def identity(self) -> list[object]:
        """What all token files depend on, as JSON can hold it."""
        parts = [[[part.identity() for part in source.parts], source.limit] for source in self.sources]
        return [parts, self.tokenizer.digest, self.column, self.held, self.seed if self.held else 0, self.size]

    def pieces(self) -> Iterator[Piece]:
        return (piece for source in self.sources for piece in source.pieces())

    @cached_property
    def few(self) -> int | None:
        """How many documents there are, where they are too few for one to be drawn from each stretch."""
        most = math.ceil(1 / self.held) if self.held else 1
        count = sum(1 for _ in islice(self.pieces(), most))
        if not count:
            raise DataError(f"{' '.join(source.name for source in self.sources)} holds nothing.")
        return count if count < most else None

    def chunks(self) -> Iterator[list[tuple[Piece, bool]]]:
        """The chunks in order: documents, and whether each is held out; one at least."""
        chunk, size = list[tuple[Piece, bool]](), 0
        for piece, held in zip(self.pieces(), drawn(self.held, self.seed, self.few), strict=False):
            chunk.append((piece, held))
            size += piece.size
            if size >= self.size:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def encoded(self, chunk: Sequence[tuple[Piece, bool]]) -> tuple[list[list[int]], list[list[int]]]:
        """The documents' ids with EOS after each: those to train on, and those held out.

        A document that is all there is gives up its end.
        """
        texts = [(text(piece.read(), self.column), held) for piece, held in chunk]
        if self.held and self.few == 1:
            texts = list(zip(parted(texts[0][0], self.held), (False, True), strict=True))
        sides = [[text for text, held in texts if held is side] for side in (False, True)]
        learned, held = ([self.tokenizer.closed(ids) for ids in self.tokenizer.encode_all(side)] for side in sides)
        return learned, held


def drawn(fraction: float, seed: int, count: int | None) -> Iterator[bool]:
    """For document after document, whether it is held out: one of each stretch of 1 / fraction documents, at random.

    count: how many documents there are, if they are fewer than the first stretch has.
    """
    if not fraction:
        while True:
            yield False
    generator, begin, stretch = np.random.default_rng(seed), 0, 1
    while True:
        end = max(begin + 1, math.ceil(stretch / fraction))
        chosen = int(generator.integers(begin, min(end, count or end)))
        yield from (number == chosen for number in range(begin, end))
        begin, stretch = end, stretch + 1


def parted(text: str, fraction: float) -> tuple[str, str]:
    """A text without its end, and the end: a `fraction` of it, from a line's beginning, where there are lines."""
    middle = int(len(text) * (1 - fraction))
    middle = text.find("\n", middle) + 1 or middle
    return text[:middle], text[middle:]


# ---- files ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Chunk:
    """One chunk's files, opened. ids: mapped. ends: where documents end. training: how many are to train on."""

    ids: np.ndarray
    ends: np.ndarray
    training: int

    @staticmethod
    def open(folder: Path, number: int, dtype: np.dtype) -> Chunk | None:
        """None where it is not there, or not whole."""
        try:
            ends = np.load(folder / f"{number:06}.ends", allow_pickle=False)
            path, size = folder / f"{number:06}.ids", int(ends[-1]) if len(ends) > 1 else 0
            if path.stat().st_size != size * dtype.itemsize:
                return None
            ids = np.memmap(path, dtype, "r", shape=(size,)) if size else np.empty(0, dtype)
        except (FileNotFoundError, EOFError, ValueError):
            return None
        return Chunk(ids, ends[1:], int(ends[0]))

    def write(self, folder: Path, number: int) -> None:
        """Each file beside its place and moved there once its bytes are on the disk; the ends last."""
        ends = np.concatenate([[self.training], self.ends]).astype("<i8")
        for name, values in ((f"{number:06}.ids", self.ids), (f"{number:06}.ends", ends)):
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".part", delete=False) as file:
                if name.endswith(".ids"):
                    values.tofile(file)
                else:
                    np.save(file, values)
                file.flush()
                os.fsync(file.fileno())
            Path(file.name).replace(folder / name)

    def __getitem__(self, number: int) -> np.ndarray:
        return self.ids[self.ends[number - 1] if number else 0 : self.ends[number]]

    @property
    def lengths(self) -> np.ndarray:
        """Of all documents: those to train on, then those held out."""
        return np.diff(self.ends, prepend=0)


def make(recipe: Recipe, folder: Path, wait: bool) -> Iterator[tuple[int, bool]]:
    """Makes the chunks that are not there, one after another; gives the number of each, and whether it is there now.

    One that another process is making is not made twice: it is waited for, or left to it, not there yet.
    """
    for number, chunk in enumerate(recipe.chunks()):
        there = Chunk.open(folder, number, recipe.dtype) is not None
        if not there:
            try:
                with FileLock(folder / f"{number:06}.lock", timeout=-1 if wait else 0):
                    if not Chunk.open(folder, number, recipe.dtype):  # another may have made it meanwhile
                        learned, held = recipe.encoded(chunk)
                        together(learned, held, recipe.dtype).write(folder, number)
                there = True
            except Timeout:
                pass
        yield number, there


def together(learned: list[list[int]], held: list[list[int]], dtype: np.dtype) -> Chunk:
    documents = [np.array(ids, dtype=dtype) for ids in (*learned, *held)]
    ids = np.concatenate([np.empty(0, dtype), *documents])
    return Chunk(ids, np.cumsum([len(ids) for ids in documents], dtype=np.int64), len(learned))
