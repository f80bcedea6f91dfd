"""The training loop: steps of batches change weights. What differs between trainings arrives as arguments.

Knows no file, no model and no display: what happens after a step (records, validation, saving) is in `after`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lathe.data.loader import Batch, Work
from lathe.errors import UsageError

Objective = Callable[[Batch], Tensor]  # the loss, summed over the batch's supervised tokens


@dataclass(frozen=True)
class Step:
    """One optimizer step. number: from 1. loss: mean over its supervised tokens, before the update. tokens, supervised:
    how many it learned from. lr: learning rate. gradient_norm: before clipping. seconds: it took, with
    the reading of its data."""

    number: int
    loss: float
    tokens: int
    supervised: int
    lr: float
    gradient_norm: float
    seconds: float


def train(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    data: Iterable[Work],
    steps: range,
    schedule: Callable[[int], float],
    max_norm: float | None,
    after: Callable[[Step], bool],
) -> None:
    """Learn from one item of `data` per step, until `steps` or `data` end or `after` returns False.

    A step's gradient is that of the mean loss over all its supervised tokens, however they lie in batches. schedule:
    the factor on the learning rate (each group's `initial_lr`) at a step. max_norm: gradients are scaled down to it.

    Raises:
        UsageError: the loss is not a number any more.
    """
    parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
    begin = time.perf_counter()
    for step, work in zip(steps, data, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * schedule(step)
        losses = []
        for batch in work.batches:
            loss = objective(batch) / work.supervised
            loss.backward()
            losses.append(loss.detach())
        total = torch.stack(losses).sum().item()
        if not math.isfinite(total):
            raise UsageError(
                f"The loss is {total} at step {step + 1}.", "", "Lower the learning rate (--optimizer.lr)."
            )
        norm = nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm)
        optimizer.step()
        optimizer.zero_grad()
        lr, seconds = optimizer.param_groups[0]["lr"], time.perf_counter() - begin
        if not after(Step(step + 1, total, work.tokens, work.supervised, lr, norm.item(), seconds)):
            return
        begin = time.perf_counter()


@torch.no_grad()
def mean(objective: Objective, data: Iterable[Work]) -> float:
    """The mean loss over all supervised tokens of `data`; nan where there are none."""
    total, supervised = 0.0, 0
    for work in data:
        total += sum(objective(batch).item() for batch in work.batches)
        supervised += work.supervised
    return total / supervised if supervised else math.nan


def check(loss: float, step: int) -> None:
    """Raise UsageError where the loss is not a number any more: what follows could only be worse."""
    if not math.isfinite(loss):
        raise UsageError(f"The loss is {loss} at step {step}.", "", "Lower the learning rate (--optimizer.lr).")
