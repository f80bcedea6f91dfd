"""Runs one function in N processes that can talk to each other through torch.distributed, and ends them together."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lathe.errors import LatheError, UsageError
from lathe.signals import once

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

PATIENCE = 5  # seconds that processes have to end by themselves before they are killed
CAUSE = 1  # seconds in which the death is heard of that another process's failure came of


def run(function: Callable[..., Any], count: int, kind: str, *arguments: Any, patient: bool = False) -> Any:
    """Call `function(device, *arguments)` in `count` processes, where the device is each one's own: cuda:0 and on, or
    cpu for all. It must be importable, and what it is given picklable. Returns what the first one returns.

    patient: Ctrl-C and SIGTERM are passed on to all, who end by themselves; a second one ends them. Otherwise the first
    does.

    Raises the first LatheError that one of them raises, and UsageError where one dies; then the others are ended too.
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
                    target=_rank, args=(theirs, store, rank, count, kind, function, arguments, patient), daemon=True
                )
                process.start()
                theirs.close()  # so that the end of the process is the end of the pipe
                ranks.append(process)
                reports.append(mine)
            with _passed_on(ranks) if patient else nullcontext():
                return _watch(ranks, reports)
        finally:
            _end(ranks)


@contextmanager
def _passed_on(ranks: list[BaseProcess]) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to all processes, once; the second one is this process's own."""

    def pass_on(number: int) -> None:
        for process in ranks:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)

    with once(pass_on):
        yield


def apart() -> None:
    """Leave the terminal's group of processes: it sends Ctrl-C to whoever started this process, who passes it on."""
    if hasattr(os, "setsid") and os.getpgrp() != os.getpid():
        os.setsid()


def _follow() -> None:
    """End when the process that started this one is gone, whatever it died of."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _rank(
    report: Connection,
    store: str,
    rank: int,
    count: int,
    kind: str,
    function: Callable[..., Any],
    arguments: Any,
    patient: bool,
) -> None:
    """One process: join the others, do the work, and say what came of it or what went wrong."""
    threading.Thread(target=_follow, daemon=True).start()
    if patient:
        apart()
    else:
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
        result = function(device, *arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        dist.barrier()  # whoever is done first must not close the line
        report.send(("done", result))
    except LatheError as error:
        report.send(("raised", type(error), error.found, error.expected, error.fix))
    except KeyboardInterrupt:
        report.send(("interrupted",))
    except BaseException:
        report.send(("failed", time.time(), traceback.format_exc()))
    report.close()
    os._exit(0)  # not through the group's destructors, which may wait for a rank that is gone


def _watch(ranks: list[BaseProcess], reports: list[Connection]) -> Any:
    """Wait until all are done and return what the first one returned, or raise what went wrong first.

    Where one is gone, what the others wait for fails, too, and they may be heard before it is.
    """
    left: dict[Any, int] = dict(zip(reports, range(len(ranks)), strict=True))
    result = None
    failures: list[tuple[float, str]] = []
    while left:
        ready: list[Any] = wait(list(left), CAUSE if failures else None)
        if not ready:
            break
        for report in ready:
            rank = left.pop(report)
            try:
                how, *said = report.recv()
            except EOFError:
                raise _death(ranks[rank], rank, len(ranks)) from None
            if how == "interrupted":
                raise KeyboardInterrupt
            if how == "failed":
                when, words = said
                failures.append((when, f"Process {rank + 1} of {len(ranks)} failed:\n{words}"))
            if how == "raised":
                kind, *told = said
                raise kind(*told)
            if how == "done" and rank == 0:
                result = said[0]
    if failures:
        raise RuntimeError(min(failures)[1])
    return result


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
