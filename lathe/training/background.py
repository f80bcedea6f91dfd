"""Work that training need not wait for is done in a thread beside it, one piece after another; knows not what it is."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """One piece of work at a time. What goes wrong in it is raised where its owner next asks.

    The thread does not keep the process alive: who leaves without `wait` leaves the work undone.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin with this when what was begun before is done. Raises as `wait`."""
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="lathe-background", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether something has gone wrong by now, which `wait` raises."""
        return self._error is not None

    def wait(self) -> None:
        """Return when all is done. Raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
