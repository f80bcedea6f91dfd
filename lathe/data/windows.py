"""The order in which the documents of token files are learned from: shuffled within windows of chunks.

The first time through, windows follow the files, so that it can begin when the first of them are there. They grow from
one to the next, up to as much as is worth shuffling. From the second time on, chunks are drawn from everywhere. The
order depends on the seed and on the files, never on how far they were made when it was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lathe.data.chunks import Chunk
from lathe.data.stages import State
from lathe.data.tokens import TokenFiles
from lathe.errors import DataError

FIRST, MOST = 4, 64  # chunks in the first two windows, and in the longest


def bounds(window: int) -> tuple[int, int]:
    """The chunks of a window of the first epoch: 4, 4, 8, 16, 32, 64, and 64 ever after."""
    grown = (MOST // FIRST).bit_length()  # windows until the end of them is at 2 MOST
    if window < grown:
        return FIRST * (1 << window >> 1), FIRST * (1 << window)
    return MOST * (window - grown + 1), MOST * (window - grown + 2)


class Windows(Iterator[np.ndarray]):
    """Every document to train on once an epoch; `most` epochs, or without end."""

    def __init__(self, files: TokenFiles, seed: int, most: int | None = None) -> None:
        self.files, self.seed, self.most = files, seed, most
        self.epoch = self.window = self.index = 0
        self.before = 0  # documents of the epoch in the windows before this one
        self.chunks: list[Chunk] = []
        self.order: np.ndarray | None = None  # (N, 2): chunk in the window, document in the chunk; None: not looked yet

    def __next__(self) -> np.ndarray:
        while self.order is None or self.index == len(self.order):
            if self.epoch == self.most:
                raise StopIteration
            if self.order is not None:
                self.before += len(self.order)
                self.window, self.index = self.window + 1, 0
            self._look()
        chunk, document = self.order[self.index]
        self.index += 1
        return self.chunks[chunk][document]

    def _look(self) -> None:
        """Open the window, or the first of the next epoch; behind the last epoch there is nothing in it."""
        self.chunks = self._chunks()
        if not self.chunks:
            if not self.files.whole.targets:
                named = " ".join(source.name for source in self.files.recipe.sources)
                raise DataError(f"{named} has nothing to predict.", "It needs a document of at least two tokens.")
            self.epoch, self.window, self.before = self.epoch + 1, 0, 0
            self.chunks = self._chunks()
        documents = [(number, i) for number, chunk in enumerate(self.chunks) for i in range(chunk.training)]
        draw = np.random.default_rng((self.seed, self.epoch, self.window))
        self.order = draw.permutation(np.array(documents, dtype=np.int64).reshape(-1, 2))

    def _chunks(self) -> list[Chunk]:
        if self.epoch == self.most:
            return []
        if self.epoch == 0:
            numbers = np.arange(*bounds(self.window))
        else:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.files.whole.chunks)
            numbers = order[MOST * self.window : MOST * (self.window + 1)]
        found = [self.files.chunk(int(number)) for number in numbers]
        return [chunk for chunk in found if chunk is not None]

    @property
    def epochs(self) -> float:
        """How many times it has gone through the data; where there is no end to it, only whole times until it is known
        how much there is."""
        totals = self.files.totals if self.most is None else self.files.whole
        return self.epoch + (0.0 if totals is None else (self.before + self.index) / max(1, totals.documents))

    def state(self) -> State:
        place = {"epoch": self.epoch, "window": self.window, "index": self.index, "before": self.before}
        return {"files": self.files.key, "seed": self.seed, **place}

    def restore(self, state: State) -> None:
        same(state, self.files)
        self.seed, self.epoch, self.window = state["seed"], state["epoch"], state["window"]
        if self.epoch != self.most:
            self._look()
        self.index, self.before = state["index"], state["before"]


class Held(Iterator[np.ndarray]):
    """Every document that is held out, once, in order."""

    def __init__(self, files: TokenFiles) -> None:
        self.files = files
        self.number = self.index = 0  # of the chunk, and of the document among those held out in it
        self.chunk: Chunk | None = None

    def __next__(self) -> np.ndarray:
        self.chunk = self.chunk or self.files.chunk(self.number)
        while self.chunk and self.chunk.training + self.index == len(self.chunk.ends):
            self.number, self.index = self.number + 1, 0
            self.chunk = self.files.chunk(self.number)
        if self.chunk is None:
            raise StopIteration
        self.index += 1
        return self.chunk[self.chunk.training + self.index - 1]

    @property
    def epochs(self) -> float:
        return 0.0

    def state(self) -> State:
        return {"files": self.files.key, "chunk": self.number, "index": self.index}

    def restore(self, state: State) -> None:
        same(state, self.files)
        self.number, self.index, self.chunk = state["chunk"], state["index"], None


def same(state: State, files: TokenFiles) -> None:
    """Raises DataError where a state is a place in other files."""
    if state["files"] != files.key:
        found = "The run to be resumed was reading other data, held out other documents or had another tokenizer."
        raise DataError(found, "A run can only go on with the data it began with.")
