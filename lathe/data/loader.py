"""Rows become batches: what one optimizer step learns from, in ribbons of the size that the decoder takes at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from lathe.data.pack import IGNORE, Row
from lathe.data.stages import Stage, State
from lathe.model.layout import Layout


@dataclass(frozen=True, eq=False)
class Batch:
    """A ribbon of rows, laid end to end.

    tokens: (T,) int64. targets: (T,) int64, IGNORE where there is no loss. supervised: how many targets have a loss.
    """

    tokens: Tensor
    targets: Tensor
    layout: Layout
    supervised: int

    @staticmethod
    def of(rows: Sequence[Row], device: torch.device | str = "cpu") -> Batch:
        tokens = torch.from_numpy(np.concatenate([row.tokens for row in rows]))
        targets = torch.from_numpy(np.concatenate([row.targets for row in rows]))
        layout = Layout.of([length for row in rows for length in row.lengths], device)
        supervised = int((targets != IGNORE).sum())
        return Batch(tokens.to(device), targets.to(device), layout, supervised)


class Steps(Iterator[list[Batch]]):
    """Batches for one optimizer step after another: `per_step` rows, at most `per_batch` of them on one ribbon.

    If the rows end, the last step has those that are left.
    """

    def __init__(self, rows: Stage[Row], per_step: int, per_batch: int, device: torch.device | str = "cpu") -> None:
        self.rows, self.per_step, self.per_batch, self.device = rows, per_step, per_batch, device

    def __next__(self) -> list[Batch]:
        rows = list(islice(self.rows, self.per_step))
        if not rows:
            raise StopIteration
        cuts = range(0, len(rows), self.per_batch)
        return [Batch.of(rows[cut : cut + self.per_batch], self.device) for cut in cuts]

    def state(self) -> State:
        return self.rows.state()

    def restore(self, state: State) -> None:
        self.rows.restore(state)
