"""The parts of a pass become one ribbon, and the ribbon scores of the tokens that are due; knows nobody's wishes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lathe.engine import scheduler
from lathe.engine.pages import Pages
from lathe.engine.scheduler import Part
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout


class Piece(NamedTuple):
    """What a draft model reads of a sequence: `tokens` from position `start` on. The scores of the last `due` count."""

    sequence: scheduler.Sequence
    start: int
    tokens: list[int]
    due: int = 1


class Runner:
    """Runs a decoder whose layers keep their keys and values in the pool's layers from `first` on."""

    def __init__(self, decoder: Decoder, pages: Pages, first: int = 0) -> None:
        self.decoder, self.pages = decoder, pages
        self.layers = slice(first, first + len(decoder.spec.layers))

    def run(self, parts: Sequence[Part | Piece]) -> Tensor:
        """Hidden states of one pass, whose keys and values are in the pool then. T D."""
        tokens = torch.tensor([id for part in parts for id in part.tokens], device=self.pages.device)
        return self.decoder(tokens, self._layout(parts), self.pages.cache[self.layers])

    def scores(self, hidden: Tensor, parts: Sequence[Part | Piece]) -> Tensor:
        """Scores of the next token for the last `due` tokens of every part. hidden: T D. Returns N V, float32."""
        ends = accumulate(len(part.tokens) for part in parts)
        rows = [row for end, part in zip(ends, parts, strict=True) for row in range(end - part.due, end)]
        return self.decoder.logits(hidden if len(rows) == len(hidden) else hidden[rows]).float()

    def _layout(self, parts: Sequence[Part | Piece]) -> Layout:
        spans = [(part.sequence, part.start, part.start + len(part.tokens)) for part in parts]
        return Layout(
            positions=torch.tensor([at for _, a, b in spans for at in range(a, b)], device=self.pages.device),
            seams=tuple(accumulate((b - a for _, a, b in spans), initial=0)),
            extents=tuple(s.extent for s, _, _ in spans),
            write=_join([s.lease.slots[a:b] for s, a, b in spans]),
            read=tuple(s.lease.read(b) for s, _, b in spans),
        )


def _join(tensors: list[Tensor]) -> Tensor:
    return torch.cat(tensors) if len(tensors) > 1 else tensors[0]
