"""What a process has of memory that no file stands behind, in MiB (Linux); and a program in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path


def anonymous() -> float:
    """What this process has of it now."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


def grown(work: Callable[[], object]) -> float:
    """By how much it grows at most while something is done."""
    before, most, done = anonymous(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, anonymous())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    made = work()  # kept until it was looked at
    done.set()
    watcher.join()
    del made
    return most - before


def printed(program: str, *arguments: object) -> float:
    """The number that a program prints, which may import this module. It has one thread."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
