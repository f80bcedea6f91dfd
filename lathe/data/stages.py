"""The order in which documents are seen: stages that give item after item and can say where they are.

A stage's `state` is what JSON can hold, and says everything that what comes next depends on, so that a run that is
stopped and resumed sees what it would have seen. Knows nothing of what the items are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from lathe.errors import DataError

State = dict[str, Any]
T = TypeVar("T")
Item = TypeVar("Item", covariant=True)


class Stage(Iterator[Item], Protocol[Item]):
    @property
    def epochs(self) -> float:
        """How many times it has gone through its data."""

    def state(self) -> State:
        """Where the next item comes from."""

    def restore(self, state: State) -> None:
        """Go on from there. Raises DataError if it is a place in other data."""


class InOrder(Iterator[T]):
    """Every item once, from the first to the last."""

    def __init__(self, items: Sequence[T]) -> None:
        self.items, self.index = items, 0

    def __next__(self) -> T:
        if self.index == len(self.items):
            raise StopIteration
        self.index += 1
        return self.items[self.index - 1]

    @property
    def epochs(self) -> float:
        return self.index / max(1, len(self.items))

    def state(self) -> State:
        return {"index": self.index, "items": len(self.items)}

    def restore(self, state: State) -> None:
        check(state, len(self.items))
        self.index = state["index"]


class Shuffled(Iterator[T]):
    """Every item once an epoch, each epoch in its own order, drawn from the seed; `most` epochs, or without end."""

    def __init__(self, items: Sequence[T], seed: int, most: int | None = None) -> None:
        assert len(items), "an empty epoch would never end"
        self.items, self.seed, self.most = items, seed, most
        self.epoch = self.index = 0
        self.order = self.drawn()

    def drawn(self) -> np.ndarray:
        return np.random.default_rng((self.seed, self.epoch)).permutation(len(self.items))

    def __next__(self) -> T:
        if self.index == len(self.items):
            if self.epoch + 1 == self.most:
                raise StopIteration
            self.epoch, self.index = self.epoch + 1, 0
            self.order = self.drawn()
        self.index += 1
        return self.items[self.order[self.index - 1]]

    @property
    def epochs(self) -> float:
        return self.epoch + self.index / len(self.items)

    def state(self) -> State:
        return {"seed": self.seed, "epoch": self.epoch, "index": self.index, "items": len(self.items)}

    def restore(self, state: State) -> None:
        check(state, len(self.items))
        self.seed, self.epoch, self.index = state["seed"], state["epoch"], state["index"]
        self.order = self.drawn()


def check(state: State, items: int) -> None:
    """The place that was saved is one in data of this size."""
    if state["items"] != items:
        found = f"The run to be resumed was reading {state['items']} documents, and the data now holds {items}."
        raise DataError(found, "A run can only go on with the data it began with.")
