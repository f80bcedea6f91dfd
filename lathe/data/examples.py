"""A data set's rows become examples for one model, to learn from and to validate on, and these the work of a run.

A step learns from a number of whole examples. They are laid end to end on ribbons, with seams and without padding, so
how many ribbons there are changes the memory and not the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from lathe.data.loader import Steps
from lathe.data.pack import Row, laid
from lathe.data.render import Group, learned
from lathe.data.stages import InOrder, Shuffled, Stage


@dataclass(frozen=True, eq=False)
class Examples:
    """groups: what a step learns as one, each with at most `length` tokens in every example. cut: how many lost their
    end, left_out: how many rows are not among them."""

    groups: list[Group]
    length: int
    cut: int = 0
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.groups)

    @cached_property
    def tokens(self) -> int:
        return sum(len(example) for group in self.groups for example in group)

    @cached_property
    def supervised(self) -> int:
        """Tokens that are learned."""
        return learned(self.groups)

    def questions(self) -> list[list[int]]:
        """What each example's first answer is asked with, as ids; nothing of a text that is learned from its start."""
        starts = [(group[0].ids, int(group[0].supervised.argmax())) for group in self.groups]
        return [ids[:start].tolist() for ids, start in starts if start > 1]

    def split(self, fraction: float, seed: int) -> tuple[Examples, Examples]:
        """Those to train on, and a random part held out, at least one where any are to be."""
        count = min(max(1, round(len(self) * fraction)), len(self) - 1) if fraction else 0
        order = np.random.default_rng(seed).permutation(len(self))
        parts = (sorted(order[count:]), sorted(order[:count]))
        train, held = ([self.groups[at] for at in part] for part in parts)
        return Examples(train, self.length, self.cut, self.left_out), Examples(held, self.length)

    def training(self, per_step: int, rows: int, seed: int, **where: Any) -> Laid:
        """Steps of `per_step` examples, without end, in a new order each epoch. rows: of `length`, on a ribbon."""
        return Laid(Shuffled(self.groups, seed), per_step, self.length * rows, **where)

    def validation(self, per_step: int, rows: int, **where: Any) -> Laid:
        """All of them, once, in order."""
        return Laid(InOrder(self.groups), per_step, self.length * rows, **where)


class Laid(Steps):
    """Work for one optimizer step after another: `per_step` examples, on ribbons of at most `room` tokens."""

    def __init__(self, groups: Stage[Group], per_step: int, room: int, **where: Any) -> None:
        super().__init__(groups, per_step, 1, **where)  # type: ignore[arg-type]
        self.groups, self.room = groups, room

    def take(self) -> list[Row]:
        return laid(list(islice(self.groups, self.per_step)), self.room)
