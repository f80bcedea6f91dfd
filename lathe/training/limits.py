"""How far a run has come and where it ends become whether it is over, and how many steps it will have had."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Reached:
    """How far a run has come, over all processes and resumptions. What is saved to go on from.

    steps: of the optimizer. tokens: on all ribbons. epochs: times through the data. seconds: on the clock, with
    validation and saving."""

    steps: int = 0
    tokens: int = 0
    epochs: float = 0.0
    seconds: float = 0.0


START = Reached()


@dataclass(frozen=True)
class Limits:
    """Where a run ends: the first that is reached counts. None: no limit.

    epochs: the data itself ends after so many, because a packer reads ahead of what it has given; here they only say
    how long the run will be.
    """

    steps: int | None = None
    tokens: int | None = None
    epochs: float | None = None
    seconds: float | None = None

    def over(self, at: Reached) -> bool:
        """Whether there is nothing left to do."""
        pairs = ((at.steps, self.steps), (at.tokens, self.tokens), (at.seconds, self.seconds))
        return any(limit is not None and reached >= limit for reached, limit in pairs)

    def total(self, at: Reached) -> float:
        """How many steps there will have been at the end, if those to come are like those that were. Exact for a limit
        of steps, and of tokens where all steps have as many; inf without any limit. at: after one step or more."""
        totals = [math.inf if self.steps is None else float(self.steps)]
        for reached, limit in ((at.tokens, self.tokens), (at.epochs, self.epochs), (at.seconds, self.seconds)):
            if limit is not None and reached > 0:
                totals.append(max(at.steps, math.ceil(at.steps * limit / reached - 1e-6)))
        return min(totals)
