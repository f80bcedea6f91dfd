"""The order in which documents are seen: stages that give item after item and can say where they are.

A stage's `state` is what JSON can hold, and says everything that what comes next depends on, so that a run that is
stopped and resumed sees what it would have seen. Knows nothing of what the items are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
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


class Blocks(Iterator[T]):
    """The items of a stage in blocks of `size`, each block in an order of its own, drawn from the seed.

    Neighbours come apart by as much as a block is long, whatever the order of the stage is.
    """

    def __init__(self, stage: Stage[T], size: int, seed: int) -> None:
        self.stage, self.size, self.seed = stage, size, seed
        self.block = self.index = 0
        self.items: list[T] = []
        self.begin, self.begun = stage.state(), 0.0  # where the block comes from

    def __next__(self) -> T:
        if self.index == len(self.items):
            self.block += bool(self.items)
            self._fill()
            if not self.items:
                raise StopIteration
        self.index += 1
        return self.items[self.order[self.index - 1]]

    def _fill(self) -> None:
        self.begin, self.begun, self.index = self.stage.state(), self.stage.epochs, 0
        self.items = list(islice(self.stage, self.size))
        self.order = np.random.default_rng((self.seed, self.block)).permutation(len(self.items))

    @property
    def epochs(self) -> float:
        done = self.index / max(1, len(self.items))
        return self.begun + done * (self.stage.epochs - self.begun)

    def state(self) -> State:
        return {"stage": self.begin, "seed": self.seed, "block": self.block, "index": self.index}

    def restore(self, state: State) -> None:
        self.stage.restore(state["stage"])
        self.seed, self.block = state["seed"], state["block"]
        self._fill()
        self.index = state["index"]


def length(item: Any) -> int:
    return len(item)


class Mixed(Iterator[T]):
    """Items of several stages, such that each has its share of what was given, by weight and by the size of items.

    Next is always the stage that is furthest behind its share, so nothing is drawn, and every beginning is mixed alike.
    A stage that ends is left out from then on. size: what an item counts; its length, by default. epoch: what all items
    of one epoch count together, where that is known; then it ends after `most` of them.
    """

    def __init__(
        self,
        stages: Sequence[Stage[T]],
        weights: Sequence[float],
        size: Callable[[T], float] = length,
        epoch: float | None = None,
        most: int | None = None,
    ) -> None:
        assert len(stages) == len(weights)
        assert most is None or epoch is not None
        self.stages, self.weights, self.size, self.epoch, self.most = stages, weights, size, epoch, most
        self.given: list[float] = [0] * len(stages)
        self.ended: set[int] = set()

    def __next__(self) -> T:
        while len(self.ended) < len(self.stages) and (self.most is None or self.epochs < self.most):
            going = (number for number in range(len(self.stages)) if number not in self.ended)
            chosen = min(going, key=lambda number: (self.given[number] + 1) / self.weights[number])
            for item in self.stages[chosen]:
                self.given[chosen] += self.size(item)
                return item
            self.ended.add(chosen)
        raise StopIteration

    @property
    def epochs(self) -> float:
        """Where the size of an epoch is not known, those of the stage that was gone through least."""
        if self.epoch is not None:
            return sum(self.given) / self.epoch
        return min(stage.epochs for stage in self.stages)

    def state(self) -> State:
        stages = [stage.state() for stage in self.stages]
        return {"stages": stages, "given": list(self.given), "ended": sorted(self.ended)}

    def restore(self, state: State) -> None:
        check({"items": len(state["stages"])}, len(self.stages), "sources")
        for stage, saved in zip(self.stages, state["stages"], strict=True):
            stage.restore(saved)
        self.given, self.ended = list(state["given"]), set(state["ended"])


def check(state: State, items: int, what: str = "documents") -> None:
    """The place that was saved is one in data of this size."""
    if state["items"] != items:
        found = f"The run to be resumed was reading {state['items']} {what}, and the data now holds {items}."
        raise DataError(found, "A run can only go on with the data it began with.")
