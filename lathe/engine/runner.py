"""The parts of a pass become one ribbon, and the ribbon scores of the tokens that are due; knows nobody's wishes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from lathe.engine.pages import Pages
from lathe.engine.scheduler import Part
from lathe.model.decoder import Decoder
from lathe.model.layout import Layout


class Runner:
    def __init__(self, decoder: Decoder, pages: Pages) -> None:
        self.decoder, self.pages = decoder, pages

    def run(self, parts: Sequence[Part]) -> Tensor:
        """Hidden states of one pass, whose keys and values are in the pool then. T D."""
        tokens = [id for s, n in parts for id in s.tokens[s.cached : s.cached + n]]
        return self.decoder(torch.tensor(tokens, device=self.pages.device), self._layout(parts), self.pages.cache)

    def scores(self, hidden: Tensor, parts: Sequence[Part]) -> Tensor:
        """Scores of the next token for every part after which one is due. hidden: T D. Returns N V, float32."""
        ends = accumulate(part.length for part in parts)
        rows = [end - 1 for end, part in zip(ends, parts, strict=True) if part.ends]
        return self.decoder.logits(hidden if len(rows) == len(hidden) else hidden[rows]).float()

    def _layout(self, parts: Sequence[Part]) -> Layout:
        spans = [(s, s.cached, s.cached + n) for s, n in parts]
        return Layout(
            positions=_join([torch.arange(a, b, device=self.pages.device) for _, a, b in spans]),
            seams=tuple(accumulate((part.length for part in parts), initial=0)),
            extents=tuple(s.extent for s, _ in parts),
            write=_join([s.lease.slots[a:b] for s, a, b in spans]),
            read=tuple(s.lease.read(b) for s, _, b in spans),
        )


def _join(tensors: list[Tensor]) -> Tensor:
    return torch.cat(tensors) if len(tensors) > 1 else tensors[0]
