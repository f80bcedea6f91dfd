"""A folder of token files as documents of ids: those that are whole can be read while the others are being made.

A folder is named by what its ids depend on (content of the sources, tokenizer, what is held out), so that files made
from something else are never taken for it. Who asks for a chunk waits until it is there. Processes do not talk to each
other: whoever gets a folder's lock makes it, the others look for its files, and take over where the maker is gone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from lathe.data.chunks import SIZE, Chunk, Recipe, make
from lathe.data.making import PAUSE, Workers
from lathe.data.unpacking import cache

FORM = 1  # of the files; another one when what is in them changes
SMALL = 4 * SIZE  # bytes of text that are encoded where they are read


@dataclass(frozen=True)
class Totals:
    """What all chunks hold together. targets: tokens that are predicted, all but each document's first."""

    chunks: int
    documents: int
    tokens: int
    targets: int
    held_documents: int
    held_tokens: int
    held_targets: int


class TokenFiles:
    """The documents of `recipe` as ids, from the files in `folder`, which are made where they are not there.

    workers: processes that make them; 0: they are made here, each when it is asked for. waiting: called from time to
    time while there is nothing to read, with the number of chunks that are there.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path | None = None,
        workers: int | None = None,
        waiting: Callable[[int], None] | None = None,
    ) -> None:
        self.recipe, self.waiting = recipe, waiting
        self.key = hashlib.blake2b(json.dumps([FORM, recipe.identity()]).encode(), digest_size=12).hexdigest()
        name = re.sub(r"[^\w.-]+", "-", Path(recipe.sources[0].name).name)[:40]
        self.folder = (folder or cache() / "tokens") / f"{name}-{self.key}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.count = processes(recipe) if workers is None else workers
        self.lock = FileLock(self.folder / "workers.lock", timeout=0)
        self.workers: Workers | None = None
        self.making: Iterator[tuple[int, bool]] | None = None

    def chunk(self, number: int) -> Chunk | None:
        """One chunk, once it is there; None behind the last. Raises DataError where the data cannot be encoded."""
        looked = 0
        while self.totals is None or number < self.totals.chunks:
            if (found := self._open(number)) is not None:
                return found
            self._further()
            if self.waiting and looked % 10 == 0:
                self.waiting(number)
            looked += 1
        return None

    def _open(self, number: int) -> Chunk | None:
        return Chunk.open(self.folder, number, self.recipe.dtype)

    @property
    def totals(self) -> Totals | None:
        """Of all chunks; None while some are still to be made."""
        if "_totals" not in self.__dict__:
            try:
                told = json.loads((self.folder / "totals.json").read_text(encoding="utf-8"))
                self._totals = Totals(**told)
            except (FileNotFoundError, ValueError, TypeError):
                return None
        return self._totals

    @cached_property
    def whole(self) -> Totals:
        """The totals, once all chunks are there."""
        number = 0
        while (found := self.totals) is None:
            self.chunk(number)
            number += 1
        return found

    # ---- who makes them ---------------------------------------------------------------------------------------------
    def _further(self) -> None:
        """Make the next chunk, or see that others do, for a moment."""
        if self.count == 0:
            self.making = self.making or make(self.recipe, self.folder, wait=True)
            if next(self.making, None) is None:
                self.making = None
                self._sum()
            return
        if self.workers:
            self.workers.check()
            if all(process.poll() == 0 for process in self.workers.processes):
                self._sum()
                self.close()
                return
        elif self._mine():
            self.workers = Workers(self.recipe, self.folder, self.count)
        time.sleep(PAUSE)

    def _mine(self) -> bool:
        try:
            self.lock.acquire()
        except Timeout:
            return False
        return True

    def close(self) -> None:
        """End what makes the files; what is made stays."""
        if self.workers:
            self.workers.stop()
            self.workers = None
            self.lock.release()

    def _sum(self) -> None:
        """Write the totals: all chunks are there."""
        sums, number = np.zeros(6, dtype=np.int64), 0
        while chunk := self._open(number):
            for side, lengths in enumerate((chunk.lengths[: chunk.training], chunk.lengths[chunk.training :])):
                sums[3 * side : 3 * side + 3] += (len(lengths), lengths.sum(), (lengths - 1).clip(0).sum())
            number += 1
        told = asdict(Totals(number, *sums.tolist()))
        beside = self.folder / f".totals.{os.getpid()}"
        beside.write_text(json.dumps(told), encoding="utf-8")
        beside.replace(self.folder / "totals.json")


def processes(recipe: Recipe) -> int:
    """How many processes make token files by default: none for little text, else all processors but one, at most 8."""
    if all(size <= SMALL for size in accumulate(piece.size for piece in recipe.pieces())):
        return 0
    return max(1, min(8, (os.cpu_count() or 1) - 1))
