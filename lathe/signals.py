"""Ctrl-C and SIGTERM become a call, once; knows no process but this one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def once(handler: Callable[[int], object]) -> Iterator[None]:
    """While the block runs, the first of these signals calls the handler with its number. A second one does what it
    would have done before. In another thread than the main one, which alone hears them, none does."""
    heard = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in heard}

    def restore() -> None:
        for number, usual in before.items():
            signal.signal(number, usual)

    def caught(number: int, frame: FrameType | None) -> None:
        restore()
        handler(number)

    for number in before:
        signal.signal(number, caught)
    try:
        yield
    finally:
        restore()
