"""Runs one function in N processes that can talk to each other through torch.distributed, and ends them together."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lathe.errors import LatheError, UsageError

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

PATIENCE = 5  # seconds that processes have to end by themselves before they are killed


def run(function: Callable[..., Any], count: int, kind: str, *arguments: Any) -> None:
    """Call `function(device, *arguments)` in `count` processes, where the device is each one's own: cuda:0 and on, or
    cpu for all. It must be importable, and what it is given picklable.

    Raises the first LatheError that one of them raises, and UsageError where one dies; then the others are ended too.
    An interruption ends all.
    """
    import torch.multiprocessing as mp

    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="lathe-") as folder:
        store = str(Path(folder) / "store")
        ranks: list[BaseProcess] = []
        reports: list[Connection] = []
        try:
            for rank in range(count):
                mine, theirs = context.Pipe(duplex=False)
                process = context.Process(
                    target=_rank, args=(theirs, store, rank, count, kind, function, arguments), daemon=True
                )
                process.start()
                theirs.close()  # so that the end of the process is the end of the pipe
                ranks.append(process)
                reports.append(mine)
            _watch(ranks, reports)
        finally:
            _end(ranks)


def _rank(
    report: Connection, store: str, rank: int, count: int, kind: str, function: Callable[..., Any], arguments: Any
) -> None:
    """One process: join the others, do the work, and say what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is the first process's, which ends all
    import torch
    import torch.distributed as dist

    try:
        torch.set_num_threads(max(torch.get_num_threads() // (1 if kind == "cuda" else count), 1))
        device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
        if kind == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.FileStore(store, count), rank=rank, world_size=count)
        function(device, *arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        dist.barrier()  # whoever is done first must not close the line
        report.send(None)
    except LatheError as error:
        report.send((type(error), error.found, error.expected, error.fix))
    except BaseException:
        report.send(traceback.format_exc())
    report.close()
    os._exit(0)  # not through the group's destructors, which may wait for a rank that is gone


def _watch(ranks: list[BaseProcess], reports: list[Connection]) -> None:
    """Wait until all are done, or raise what went wrong first."""
    left: dict[Any, int] = dict(zip(reports, range(len(ranks)), strict=True))
    while left:
        ready: list[Any] = wait(list(left))
        for report in ready:
            rank = left.pop(report)
            try:
                said = report.recv()
            except EOFError:
                raise _death(ranks[rank], rank, len(ranks)) from None
            if isinstance(said, str):
                raise RuntimeError(f"Process {rank + 1} of {len(ranks)} failed:\n{said}")
            if said is not None:
                kind, *words = said
                raise kind(*words)


def _death(process: BaseProcess, rank: int, count: int) -> UsageError:
    """What to say of a process that ended without a word."""
    process.join(PATIENCE)
    code = process.exitcode or 0
    how = f"was ended by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with status {code}"
    fix = "Perhaps the memory did not suffice: use more devices, or fewer bits." if code == -9 else ""
    return UsageError(f"Process {rank + 1} of {count} {how}; the others were ended too.", "", fix)


def _end(ranks: list[BaseProcess]) -> None:
    """Leave no process behind: those that are done have said so, and all others are of no more use."""
    for process in ranks:
        process.join(0 if process.is_alive() else None)
        process.terminate()
    for process in ranks:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
