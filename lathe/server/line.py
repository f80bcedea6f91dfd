"""The line between the web process and an engine process: JSON messages, as lists of which the first item is a word.

Nothing on it is ever unpickled but the function that loads the model, which this program itself hands over. Imports no
torch: that is the engine process's.

    to the engine   ["ask", id, {...}], ["cancel", id], ["embed", id, [tokens], adapter],
                    ["judge", id, [tokens], adapter, top, salt], ["adapt", id, name, path], ["take off", id, name],
                    ["stop"]
    from it         ["ready", {...}], ["failed", error], ["made", {...}] after a step (see `room`),
                    ["refused", id, error], ["done", id, value]; and from the line itself, at last, ["gone", exit code]
    error           [class, found, expected, fix]
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from lathe import errors
from lathe.errors import LatheError
from lathe.server import refusals

if TYPE_CHECKING:
    from lathe.server.room import Loaded

Message = list[Any]


class Line:
    """The web process's end. `open` it in the event loop that will take its messages.

    process: who is at the other end; a thread, where a program wants both in one process.
    """

    def __init__(self, pipe: Connection, process: BaseProcess | threading.Thread) -> None:
        self._pipe, self.process, self._closed = pipe, process, False
        self._listener: threading.Thread | None = None
        self._out = ThreadPoolExecutor(1)  # sends in order, and may wait where the pipe is full

    @classmethod
    def begin(cls, load: Callable[[], Loaded]) -> Line:
        """Start an engine process that loads a model by `load`, which must be picklable."""
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        process = context.Process(target=_engine, args=(theirs, load), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        return cls(mine, process)

    def open(self, take: Callable[[Message], None]) -> None:
        """Have `take` called with every message, in this event loop."""
        self._listener = threading.Thread(target=self._listen, args=(asyncio.get_running_loop(), take), daemon=True)
        self._listener.start()

    def _listen(self, loop: asyncio.AbstractEventLoop, take: Callable[[Message], None]) -> None:
        with suppress(RuntimeError):  # the loop has been closed: nobody listens any more
            while (data := self._next()) is not None:
                loop.call_soon_threadsafe(take, json.loads(data))
            self.process.join(5)
            if not self._closed:
                loop.call_soon_threadsafe(take, ["gone", getattr(self.process, "exitcode", None)])

    def _next(self) -> bytes | None:
        try:
            return self._pipe.recv_bytes()
        except (EOFError, OSError):
            return None

    def send(self, *message: Any) -> None:
        """Send a message, without waiting for it to be read."""
        with suppress(RuntimeError):  # closed
            self._out.submit(self._send, json.dumps(message).encode())

    def _send(self, data: bytes) -> None:
        with suppress(OSError):  # an engine that is gone says so by its end of the line
            self._pipe.send_bytes(data)

    def close(self, patience: float = 5) -> None:
        """End the engine process, by force where it has not ended `patience` seconds later. May be called again."""
        self._closed = True
        self.send("stop")
        self.process.join(patience)
        if self.process.is_alive() and isinstance(self.process, BaseProcess):
            self.process.kill()
            self.process.join()
        if self._listener:
            self._listener.join(1)  # it has its end from the process; the pipe is not taken from under its hands
        self._pipe.close()  # a message that could not be sent so far cannot be sent now, either
        self._out.shutdown(wait=False)


def _engine(pipe: Connection, load: Callable[[], Loaded]) -> None:
    """The engine process."""
    for name in ("SIGINT", "SIGTERM"):  # meant for the web process, which ends this one by closing the line
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    # Threads of GNU's OpenMP that wait for the next pass would spin for milliseconds, on cores that the web process and
    # often the clients want meanwhile. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from lathe.server.room import occupy

    occupy(pipe, load)
    sys.stderr.flush()
    os._exit(0)  # nothing is left to be put away, and Python would take a second to take PyTorch apart


def key(name: str) -> str:
    """An adapter's name among the engine's, which become parts of other names: any that clients use, made fit."""
    return "lora_" + "".join(letter if letter.isalnum() else f"_{ord(letter)}_" for letter in name)


def told(error: LatheError) -> list[str]:
    """An error as it goes over the line."""
    return [type(error).__name__, error.found, error.expected, error.fix]


def heard(words: list[str]) -> LatheError:
    """The error that `told` gave."""
    name, *said = words
    kind: type[LatheError] = {**vars(errors), **vars(refusals)}[name]
    return kind(*said)
