"""Data to train and to validate on become the batches of a run; the stages between, put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from lathe.data.chunks import Recipe
from lathe.data.loader import Steps
from lathe.data.pack import Packed
from lathe.data.sources import read
from lathe.data.stages import Blocks, Mixed, Stage
from lathe.data.tokens import TokenFiles
from lathe.data.windows import FIRST, Held, Windows
from lathe.tokenizer import Tokenizer

BLOCK = 1 << 22  # tokens whose rows are shuffled together


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents in token files, perhaps still being made.

    files: to train on. weights: each one's share of the tokens; empty for a single one. held: to validate on: the
    documents that are held out in these. length: tokens in a row.
    """

    files: Sequence[TokenFiles]
    weights: Sequence[float]
    held: Sequence[TokenFiles]
    length: int

    @staticmethod
    def of(
        data: str | Sequence[str],
        tokenizer: Tokenizer,
        length: int,
        *,
        held: float | str | Sequence[str] = 0.0,
        seed: int = 0,
        column: str | None = None,
        workers: int | None = None,
        waiting: Callable[[int], None] | None = None,
    ) -> Corpus:
        """What `data` names (see `sources`), encoded.

        held: the part of the documents that is held out to validate on; or the data to validate on. column: the field
        of the text in rows. workers, waiting: see `TokenFiles`.
        """
        fraction = 0.0 if isinstance(held, str | Sequence) else float(held)
        sources = read(data)
        weights = [source.weight for source in sources if source.weight is not None]
        groups = [(source,) for source in sources] if weights else [tuple(sources)]
        files = [
            TokenFiles(Recipe(group, tokenizer, column, fraction, seed), workers=workers, waiting=waiting)
            for group in groups
        ]
        if not isinstance(held, str | Sequence):
            return Corpus(files, weights, files if held else [], length)
        apart = Recipe(tuple(read(held)), tokenizer, column, held=1.0)
        return Corpus(files, weights, [TokenFiles(apart, workers=workers, waiting=waiting)], length)

    @cached_property
    def epoch(self) -> int:
        """Tokens in an epoch: all that there are or, mixed by weight, as many as it takes for all to come once. Waits
        until everything is encoded."""
        tokens = [files.whole.tokens for files in self.files]
        if not self.weights:
            return sum(tokens)
        return int(max(some * sum(self.weights) / weight for some, weight in zip(tokens, self.weights, strict=True)))

    @cached_property
    def targets(self) -> int:
        """Tokens that are predicted in an epoch: all but each document's first. Waits, as `epoch`."""
        tokens, targets = (
            np.array([getattr(files.whole, name) for files in self.files], dtype=np.float64)
            for name in ("tokens", "targets")
        )
        shares = np.array(self.weights or [1.0]) / sum(self.weights or [1.0])
        return round(float(self.epoch * (shares * targets / np.maximum(tokens, 1)).sum()))

    def training(
        self,
        rows: int,
        at_once: int,
        seed: int,
        device: torch.device | str,
        rank: int = 0,
        ranks: int = 1,
        most: int | None = None,
    ) -> Steps:
        """Steps of `rows` rows, `at_once` on a ribbon, for `most` epochs or without end.

        Documents come in a new order each epoch, and the rows that they are cut into too, so that neighbours in a long
        document are learned from apart.
        """
        documents: Stage[np.ndarray]
        if self.weights:
            stages = [Windows(files, seed + number) for number, files in enumerate(self.files)]
            documents = Mixed(stages, self.weights, epoch=None if most is None else self.epoch, most=most)
        else:
            documents = Windows(self.files[0], seed, most)
        block = max(1, min(BLOCK, self._first()) // self.length)
        return Steps(Blocks(Packed(documents, self.length), block, seed), rows, at_once, device, rank, ranks)

    def _first(self) -> int:
        """Tokens in what is shuffled first."""
        chunks = [files.chunk(number) for files in self.files for number in range(FIRST)]
        return sum(len(chunk.ids) for chunk in chunks if chunk is not None)

    def validation(self, at_once: int, device: torch.device | str, rank: int = 0, ranks: int = 1) -> Steps:
        """All held documents, once, in order; of several sources, taking turns."""
        documents = Mixed([Held(files) for files in self.held], [1.0] * len(self.held))
        return Steps(Packed(documents, self.length), at_once * ranks, at_once, device, rank, ranks)

    def close(self) -> None:
        """End the processes that still encode."""
        for files in {*self.files, *self.held}:
            files.close()
