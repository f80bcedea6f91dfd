"""The training loop: steps of batches change weights. What differs between trainings arrives as arguments.

Knows no file, no model, no engine and no display: what happens after a step (records, validation, saving) is in
`after`, and who else computes parts of a step in `ranks`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lathe.data.loader import Batch, Work
from lathe.errors import UsageError
from lathe.training import memory
from lathe.training.limits import START, Limits, Reached
from lathe.training.precision import UNSCALED, Scale
from lathe.training.ranks import ALONE, Ranks

Objective = Callable[[Batch], Tensor]  # the loss, summed over the batch's supervised tokens (or pairs)
Schedule = Callable[[int, float], float]  # step, from 0, and how many there will be: the factor on the learning rate


@dataclass(frozen=True)
class Step:
    """One optimizer step, over all ranks.

    number: from 1. loss: mean over what is supervised, before the update. tokens: on its ribbons. supervised: tokens
    with a loss, or pairs. lr: learning rate. gradient_norm: before clipping. seconds: it took, with the reading of its
    data. reached: how far the run has come with it. total: how many steps there will be.
    """

    number: int
    loss: float
    tokens: int
    supervised: int
    lr: float
    gradient_norm: float
    seconds: float
    reached: Reached
    total: float


def train(
    objective: Objective,
    optimizers: Sequence[torch.optim.Optimizer],
    data: Iterable[Work],
    schedule: Schedule,
    limits: Limits,
    max_norm: float | None,
    after: Callable[[Step], bool],
    *,
    begin: Reached = START,
    ranks: Ranks = ALONE,
    scale: Scale = UNSCALED,
) -> Reached:
    """Learn from one item of `data` per step, until `limits` or `data` end, or `after` returns False on any rank.

    A step's gradient is that of the mean loss over all its supervised tokens on all ranks, however they lie in
    batches. schedule: the factor on each group's `initial_lr`. max_norm: gradients are scaled down to it. begin: where
    a resumed run goes on. scale: what keeps float16 gradients from vanishing. Returns how far the run came.

    Raises:
        UsageError: the loss or a gradient is not a number any more; the weights are those of before the step.
    """
    memory.keep()
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters: list[nn.Parameter] = [p for group in groups for p in group["params"]]
    reached, start, lr = begin, time.perf_counter() - begin.seconds, 0.0
    ticked = time.perf_counter()
    for work in () if limits.over(begin) else data:
        factor = scale.factor
        mine = backward(objective, work, ranks, factor)
        loss, seconds = ranks.sum(torch.stack((mine, clock(start, ranks, mine)))).tolist()
        reached = Reached(reached.steps + 1, reached.tokens + work.tokens, work.epochs, seconds)
        check(loss, reached.steps)
        norm = ranks.norm(parameters).item() / factor
        if scale.sound(norm, reached.steps):
            shrink(parameters, min(1.0, (max_norm or math.inf) / (norm + 1e-6)) / factor)
            lr = set_rates(groups, schedule(reached.steps - 1, limits.total(reached)))
            for optimizer in optimizers:
                optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()
        took = time.perf_counter() - ticked
        step = Step(reached.steps, loss, work.tokens, work.supervised, lr, norm, took, reached, limits.total(reached))
        if ranks.any(not after(step) or limits.over(reached)):
            break
        ticked = time.perf_counter()
    return reached


def backward(objective: Objective, work: Work, ranks: Ranks, factor: float) -> Tensor:
    """This rank's part of the step's mean loss; its gradients, times `factor`, are left on the parameters."""
    losses: list[Tensor] = []
    for index, batch in enumerate(work.batches):
        with ranks.backward(last=index == len(work.batches) - 1):
            loss = objective(batch) / max(1, work.supervised)
            (loss * factor).backward()
        losses.append(loss.detach().float())
    return torch.stack(losses).sum()


def clock(start: float, ranks: Ranks, like: Tensor) -> Tensor:
    """Seconds since `start`, of which the sum over ranks is the mean: one clock for all, as learning rates and the end
    may depend on it."""
    return torch.full_like(like, (time.perf_counter() - start) / ranks.count)


def set_rates(groups: Sequence[dict[str, Any]], factor: float) -> float:
    """Give each group its learning rate; returns the first's."""
    for group in groups:
        rate = group["initial_lr"] * factor
        # Some optimizers keep it as a tensor, which compiled code reads.
        group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate
    return float(groups[0]["lr"])


def shrink(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiply all gradients in place."""
    if factor != 1.0:
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)


@torch.no_grad()
def mean(objective: Objective, data: Iterable[Work], ranks: Ranks = ALONE) -> float:
    """The mean loss over all supervised tokens of `data`, on all ranks; nan where there are none."""
    total, supervised = 0.0, 0
    for work in data:
        total += sum(objective(batch).item() for batch in work.batches)
        supervised += work.supervised
    total = ranks.sum(torch.tensor(total)).item()
    return total / supervised if supervised else math.nan


def check(loss: float, step: int) -> None:
    """Raise UsageError where the loss is not a number any more: what follows could only be worse."""
    if not math.isfinite(loss):
        raise UsageError(f"The loss is {loss} at step {step}.", "", "Lower the learning rate (--optimizer.lr).")
