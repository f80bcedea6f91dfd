"""Processes that a test starts by `multiprocessing` are forks of one that has imported PyTorch and Lathe, which takes
seconds: forks have the environment and the output of who starts them, as others do.

How processes start by themselves is what tests/test_launch.py tries.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import context, reduction
from typing import Any

import pytest

IMPORTED = """lathe.llm lathe.actions.finetune lathe.actions.generate lathe.actions.course lathe.training.loop
    lathe.training.resume lathe.training.spread torch._dynamo torch.distributed.fsdp
    torch.distributed.tensor.parallel"""


class Fork(context.ForkServerProcess):
    """A fork of the process that has imported all."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "output": [reduction.DupFd(1), reduction.DupFd(2)], "environment": {**os.environ}}

    def run(self) -> None:
        for number, file in enumerate(self.output, 1):  # type: ignore[attr-defined]
            os.dup2(file.detach(), number)
        os.environ.clear()
        os.environ.update(self.environment)  # type: ignore[attr-defined]
        super().run()


class Forks(context.ForkServerContext):
    Process = Fork  # type: ignore[assignment]


@contextmanager
def forks() -> Iterator[None]:
    """Meanwhile `multiprocessing` means these by spawn. Nothing is imported before the first is started."""
    multiprocessing.set_forkserver_preload(IMPORTED.split())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(context._concrete_contexts, "spawn", Forks())  # type: ignore[attr-defined]
        yield
