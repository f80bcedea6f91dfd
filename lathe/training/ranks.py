"""What the loop asks of the processes that train together, and the answers of one that is alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor, nn


class Ranks(Protocol):
    """Processes that each compute their own batches of every step. All must ask the same questions in the same order.

    count: how many different parts of a step there are. Ranks that share a part (tensor parallelism) are one here.
    """

    count: int

    def backward(self, last: bool) -> AbstractContextManager[object]:
        """What forward and backward of one micro-batch run in. After that of the step's last one, every rank has the
        SUM of all ranks' gradients, or its shard of it."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, on every rank."""

    def norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """The 2-norm of all gradients as one vector, of the whole model, on every rank."""

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank."""


class Alone:
    """One process."""

    count = 1

    def backward(self, last: bool) -> AbstractContextManager[object]:
        return nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        return values

    def norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], error_if_nonfinite=False)

    def any(self, flag: bool) -> bool:
        return flag


ALONE = Alone()
