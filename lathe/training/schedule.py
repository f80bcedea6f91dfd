"""A step's number becomes the factor on its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Shape = Literal["cosine", "linear", "constant", "wsd"]


@dataclass(frozen=True)
class Schedule:
    """A linear rise from near 0 to 1, then a fall to `floor`, which the last step has.

    shape: cosine (Loshchilov & Hutter, arXiv:1608.03983), linear, constant, or wsd: warm up, stay at 1, and fall over
    the last part of the way, `decay`, as one minus a square root (Hägele et al., arXiv:2405.18392).
    warmup: steps that the rise takes; or, below 1, the part of all steps, at most 2000.
    """

    shape: Shape = "cosine"
    warmup: float = 0.1
    floor: float = 0.0
    decay: float = 0.2

    def __call__(self, step: int, steps: float) -> float:
        """The factor at `step`, from 0, of `steps`, which may be inf: then it stays at 1 after the rise."""
        warmup = self.warmup if self.warmup >= 1 else int(min(2000, self.warmup * steps))
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))  # the part of the way after the rise
        return self.floor + (1 - self.floor) * FALLS[self.shape](done, self.decay)


def _last(done: float, decay: float) -> float:
    """1, and over the last `decay` of the way 1 - sqrt."""
    return 1 - math.sqrt(max(0.0, 1 - (1 - done) / decay)) if decay else 1.0


FALLS: dict[Shape, Callable[[float, float], float]] = {
    "cosine": lambda done, _: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done, _: 1 - done,
    "constant": lambda done, _: 1.0,
    "wsd": _last,
}
