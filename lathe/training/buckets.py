"""Gradients that every process has of the same parameters become their sum, some megabytes at a time, while the rest
of the backward pass still runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

BYTES = 25 << 20  # of gradients in one sum: enough to fill the line, few enough that the first ones leave early


class Buckets:
    """The gradients of `parameters`, summed over `group` after each backward pass that begins with `begin`.

    Sums are taken in float32 at least. Those of the last layers, which are there first, leave first, and in the same
    order in every process, as they must. A parameter without a gradient counts as zeros, as another process may have
    one.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup, nbytes: int = BYTES) -> None:
        self.group = group
        self.buckets: list[list[nn.Parameter]] = [[]]
        filled = 0
        for parameter in reversed(parameters):
            if filled >= nbytes:
                self.buckets.append([])
                filled = 0
            self.buckets[-1].append(parameter)
            filled += parameter.nbytes
        self.waits: list[int] | None = None  # for how many gradients of each bucket; None: this pass keeps them
        self.sent: list[tuple[Tensor, dist.Work]] = []
        for number, bucket in enumerate(self.buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._ready(number))

    def begin(self) -> None:
        """Send what the coming backward pass leaves."""
        self.waits, self.sent = [len(bucket) for bucket in self.buckets], []

    def _ready(self, number: int) -> None:
        if self.waits is not None:
            self.waits[number] -= 1
            while len(self.sent) < len(self.waits) and self.waits[len(self.sent)] == 0:
                self._send()

    @torch.no_grad()
    def _send(self) -> None:
        bucket = self.buckets[len(self.sent)]
        kind = torch.promote_types(torch.float32, bucket[0].dtype)
        sum_ = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().to(kind) for p in bucket])
        work = dist.all_reduce(sum_, group=self.group, async_op=True)
        assert work is not None
        self.sent.append((sum_, work))

    @torch.no_grad()
    def finish(self) -> None:
        """Wait until every gradient is the sum of all processes'."""
        while len(self.sent) < len(self.buckets):
            self._send()
        for bucket, (sum_, work) in zip(self.buckets, self.sent, strict=True):
            work.wait()
            for parameter, part in zip(bucket, sum_.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = part.view_as(parameter).to(parameter.dtype)
        self.waits, self.sent = None, []
