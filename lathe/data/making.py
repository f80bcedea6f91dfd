"""Processes that make the chunks of token files while another one already reads them.

    python -m lathe.data.making     a worker: takes a recipe and a folder from stdin, and answers on stdout only with
                                    what went wrong; ends with the process that started it, as its stdin then ends

They are plain processes of their own, so they can be started from anywhere, and never import a caller's main module.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import IO, TYPE_CHECKING

from lathe.errors import LatheError

if TYPE_CHECKING:
    from lathe.data.chunks import Recipe

PAUSE = 0.05  # seconds between two looks at what another process does


class Workers:
    """Processes that make all chunks of `recipe` in `folder`, until they are there or `stop` is called."""

    def __init__(self, recipe: Recipe, folder: Path, count: int) -> None:
        self.processes = [self._started(pickle.dumps((recipe, folder))) for _ in range(count)]

    def _started(self, task: bytes) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join(path for path in sys.path if path)
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, "RAYON_NUM_THREADS": "1"},
        )
        assert process.stdin
        with suppress(BrokenPipeError):  # it ended at once; `check` says so
            process.stdin.write(len(task).to_bytes(8, "little") + task)
            process.stdin.flush()
        return process

    def check(self) -> None:
        """Raises what one of them met with, and LatheError where one was killed."""
        for process in self.processes:
            if process.poll():
                assert process.stdout
                answer = process.stdout.read()
                self.stop()
                if answer:
                    raise pickle.loads(answer)
                found = f"A process that makes token files ended with status {process.returncode}."
                raise LatheError(found, fix="What it printed says why; if nothing, it may have run out of memory.")

    def stop(self) -> None:
        """End them. What they have made stays, and is used."""
        for process in self.processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()


def work(given: IO[bytes], answer: IO[bytes]) -> int:
    """A worker's life. Returns its exit status."""
    from lathe.data.chunks import make

    size = int.from_bytes(given.read(8), "little")
    recipe, folder = pickle.loads(given.read(size))
    Thread(target=_end_with, args=(given,), daemon=True).start()
    try:
        while [number for number, there in make(recipe, folder, wait=False) if not there]:
            time.sleep(PAUSE)  # these are being made by others, who might not live to finish them
    except LatheError as error:
        answer.write(pickle.dumps(error))
        answer.flush()
        return 2
    return 0


def _end_with(given: IO[bytes]) -> None:
    os.read(given.fileno(), 1)  # not `read`: a lock that a thread holds when the interpreter ends is an abort
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is for the process that started this one
    answer, sys.stdout = sys.stdout.buffer, sys.stderr
    sys.exit(work(sys.stdin.buffer, answer))
