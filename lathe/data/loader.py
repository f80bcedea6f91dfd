"""Rows become batches: what one optimizer step learns from, in ribbons of the size that the decoder takes at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

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


@dataclass(frozen=True, eq=False)
class Work:
    """What one process does for one optimizer step. batches: its own, as many as every other process has.
    supervised, tokens: of all processes together, so that none has to ask the others before it begins. epochs: how many
    times the data has been gone through with it."""

    batches: list[Batch]
    supervised: int
    tokens: int
    epochs: float = 0.0


def supervised(row: Row) -> int:
    """How many targets of a row have a loss."""
    return int((row.targets != IGNORE).sum())


class Steps(Iterator[Work]):
    """Work for one optimizer step after another: `per_step` rows, at most `per_batch` of them on one ribbon.

    All of `ranks` processes read the same rows in the same order, and each keeps its own of them: nothing is sent, and
    where the data are does not depend on how many processes there are. In a step with too few rows for all, a process
    gets one without targets, so that all do the same number of passes. If the rows end, the last step has those that
    are left. weigh: what a row counts in `Work.supervised`.
    """

    def __init__(
        self,
        rows: Stage[Row],
        per_step: int,
        per_batch: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        ranks: int = 1,
        weigh: Callable[[Row], int] = supervised,
    ) -> None:
        self.rows, self.per_step, self.per_batch, self.device = rows, per_step, per_batch, device
        self.rank, self.ranks, self.weigh = rank, ranks, weigh

    def __next__(self) -> Work:
        rows = self.take()
        if not rows:
            raise StopIteration
        mine = rows[self.rank :: self.ranks]
        passes = -(-len(rows) // (self.ranks * self.per_batch))  # of the process that has most rows
        mine += [_blank(rows[0])] * (passes - len(mine))
        edges = [len(mine) * number // passes for number in range(passes + 1)]
        batches = [Batch.of(mine[a:b], self.device) for a, b in pairwise(edges)]
        tokens = sum(len(row.tokens) for row in rows)
        return Work(batches, sum(map(self.weigh, rows)), tokens, self.rows.epochs)

    def take(self) -> list[Row]:
        """The rows of the next step, those of all processes."""
        return list(islice(self.rows, self.per_step))

    def state(self) -> State:
        return self.rows.state()

    def restore(self, state: State) -> None:
        self.rows.restore(state)


def _blank(row: Row) -> Row:
    """The same row with nothing to learn from it."""
    return Row(row.tokens, np.full_like(row.targets, IGNORE), row.lengths)
