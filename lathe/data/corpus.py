"""Texts to train and to validate on become the batches of a run; the stages between, put together."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lathe.data.loader import Steps
from lathe.data.pack import Packed
from lathe.data.stages import InOrder, Shuffled
from lathe.data.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Corpus:
    """documents, held: ids to train and to validate on (maybe none). length: tokens in a row."""

    documents: Tokens
    held: Tokens
    length: int

    def training(
        self, rows: int, at_once: int, seed: int, device: torch.device | str, rank: int = 0, ranks: int = 1
    ) -> Steps:
        """Steps of `rows` rows, `at_once` on a ribbon, without end; documents in a new order each epoch."""
        return Steps(Packed(Shuffled(self.documents, seed), self.length), rows, at_once, device, rank, ranks)

    def validation(self, at_once: int, device: torch.device | str, rank: int = 0, ranks: int = 1) -> Steps:
        """All held documents, once, in order."""
        return Steps(Packed(InOrder(self.held), self.length), at_once * ranks, at_once, device, rank, ranks)
