"""The parts of a pass become one ribbon, and the ribbon scores of the tokens that are due; knows nobody's wishes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate, groupby
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lathe.engine import scheduler
from lathe.engine.graphs import Graphs, able
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


class Adapters(Protocol):
    """Whoever has adapters for the decoder, each for the requests that name it. The engine knows their names only.

    Which requests run is the engine's to know: it says `over` which rows go through which while it computes them.
    """

    def key(self, name: str) -> Hashable:
        """What changes when another adapter gets the name. Raises UsageError where there is none of that name."""

    def alone(self, name: str | None) -> bool:
        """Whether its rows need passes of their own."""

    def over(self, rows: Sequence[tuple[str | None, int]]) -> AbstractContextManager[None]:
        """While the block runs, so many rows go through each adapter, one after the other; None: through none."""

    def remove(self, name: str) -> None:
        """Take an adapter off. Raises UsageError where there is none of that name."""


class Runner:
    """Runs a decoder whose layers keep their keys and values in the pool's layers from `first` on.

    graphs: whether steps of one token each are recorded where they can be.
    """

    def __init__(
        self,
        decoder: Decoder,
        pages: Pages,
        first: int = 0,
        adapters: Adapters | None = None,
        graphs: bool = True,
    ) -> None:
        self.decoder, self.pages, self.adapters = decoder, pages, adapters
        self.layers = slice(first, first + len(decoder.spec.layers))
        self.graphs = Graphs(decoder, pages, self.layers) if graphs and able(decoder, pages) else None

    def run(self, parts: Sequence[Part | Piece]) -> Tensor:
        """Hidden states of the parts, whose keys and values are in the pool then. T D.

        All in one pass, except that adapters which cannot share one have their own. These parts stand together.
        """
        return _join([self._run(those) for those in self._passes(parts)])

    def scores(self, hidden: Tensor, parts: Sequence[Part | Piece]) -> Tensor:
        """Scores of the next token for the last `due` tokens of every part. hidden: T D. Returns N V, float32."""
        wanted = hidden  # N D
        if sum(part.due for part in parts) < len(hidden):
            ends = accumulate(len(part.tokens) for part in parts)
            wanted = hidden[[row for end, part in zip(ends, parts, strict=True) for row in range(end - part.due, end)]]
        made, start = [], 0
        for those in self._passes([part for part in parts if part.due]):
            end = start + sum(part.due for part in those)
            with self.through([(part.sequence.adapter, part.due) for part in those]):
                made.append(self.decoder.logits(wanted[start:end]).float())
            start = end
        return _join(made)

    def through(self, rows: Iterable[tuple[str | None, int]]) -> AbstractContextManager[None]:
        """While the block runs, so many rows go through each adapter, one after the other."""
        if self.adapters is None:
            return nullcontext()
        runs = groupby(rows, key=lambda row: row[0])
        return self.adapters.over([(name, sum(count for _, count in run)) for name, run in runs])

    def _run(self, parts: Sequence[Part | Piece]) -> Tensor:
        plain = self.adapters is None or not any(part.sequence.adapter for part in parts)
        if self.graphs and plain and (hidden := self.graphs.run(parts)) is not None:
            return hidden
        tokens = torch.tensor([id for part in parts for id in part.tokens], device=self.pages.device)
        with self.through((part.sequence.adapter, len(part.tokens)) for part in parts):
            return self.decoder(tokens, self._layout(parts), self.pages.cache[self.layers])

    def _passes(self, parts: Sequence[Part | Piece]) -> list[Sequence[Part | Piece]]:
        if self.adapters is None or not any(part.sequence.adapter for part in parts):
            return [parts]
        alone = self.adapters.alone
        runs = groupby(parts, key=lambda part: part.sequence.adapter if alone(part.sequence.adapter) else None)
        return [list(run) for _, run in runs]

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
