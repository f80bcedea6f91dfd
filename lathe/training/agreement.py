"""What several processes each do, or one does for all, becomes one outcome: all go on, or all end with what one met."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist

from lathe.errors import LatheError, UsageError

T = TypeVar("T")


def first(work: Callable[[], T]) -> T:
    """What `work` gives on the first process that torch.distributed has brought together, on all of them: for what
    is read from a disk that one of them may have changed before another looks. Raises as `all`."""
    if not dist.is_initialized():
        return work()
    given = all(lambda: work() if dist.get_rank() == 0 else None, dist.group.WORLD)[0]
    return cast(T, given)


def all(work: Callable[[], T], group: dist.ProcessGroup | None) -> list[T]:
    """What `work` gives on each process of the group, in order. None: this process is alone.

    Raises:
        UsageError: with the words of the first LatheError that is raised on one.
        RuntimeError: another one failed otherwise. What fails so here is raised here as it is.
    """
    if group is None:
        return [work()]
    made: T | None = None
    error: Exception | None = None
    try:
        made = work()
    except Exception as met:
        error = met
    words = (error.found, error.expected, error.fix) if isinstance(error, LatheError) else None
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, (made, words, error and repr(error)), group)
    for _, said, _ in every:
        if said:
            raise UsageError(*said) from error
    if error is not None:
        raise error
    for rank, (_, _, failed) in enumerate(every):
        if failed:
            raise RuntimeError(f"Process {rank + 1} of {len(every)} failed: {failed}")
    return [one for one, _, _ in every]
