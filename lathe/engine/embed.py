"""Texts become the means of their hidden states: they are read beside whoever answers; knows no words.

Such a text is a sequence of which nothing follows. All its hidden states count, so that it takes over nothing that was
read for others; what it reads, others may.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from lathe.engine import scheduler
from lathe.engine.scheduler import Part


@dataclass(eq=False)
class Embedded(scheduler.Sequence):
    """total: the sum of the hidden states of its first `summed` tokens, D float32."""

    answers: ClassVar[bool] = False

    total: Tensor | None = None
    summed: int = 0

    @property
    def reusable(self) -> int:
        return self.summed  # its own, which it gave up for somebody else

    @property
    def shared(self) -> int:
        return 0

    @property
    def broken(self) -> bool:
        return self.total is not None and not self.total.isfinite().all()

    @property
    def told(self) -> list[float]:
        """The mean of its hidden states, scaled to length 1: D numbers. There when it has its `finish`."""
        assert self.total is not None
        return F.normalize(self.total, dim=0).tolist()

    def take(self, total: Tensor) -> None:
        """Take the sum of hidden states that a pass gave for those of its tokens that it read first."""
        self.total = total if self.total is None else self.total + total
        self.summed = max(self.summed, self.cached)
        if not self.pending:
            self.finish = "stop"


def embedded(hidden: Tensor, parts: Iterable[Part]) -> list[tuple[Embedded, Tensor]]:
    """The sum of the hidden states of each text among the parts of a pass, of tokens that had none yet.

    hidden: T D, of all parts. The sums are D, float32.
    """
    found, end = [], 0
    for part in parts:
        start, end = end, end + len(part.tokens)
        if isinstance(text := part.sequence, Embedded):
            known = max(text.summed - part.start, 0)
            found.append((text, hidden[start + known : end].float().sum(0)))
    return found
