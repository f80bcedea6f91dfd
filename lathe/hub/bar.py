"""Bytes that arrive become a line on the terminal that moves; nothing where stderr is a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def say(text: str) -> None:
    """One line on stderr, where it does not mix with what an action prints."""
    print(text, file=sys.stderr, flush=True)


def amount(count: float) -> str:
    """Bytes in the unit that suits them: 2.47 GB."""
    units = iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while count >= 999.5 and unit != "TB":
        count, unit = count / 1000, next(units)
    return f"{count:.3g} {unit}"


class Bar:
    """How much of `total` bytes has arrived; may be told from several threads."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, count: int) -> None:
        """`count` more bytes are there; fewer, where it is negative: they have to come again."""
        self._progress.advance(self._task, count)

    def note(self, text: str) -> None:
        """What there is to say beside the bar, in a few words; nothing, when it is ''."""
        self._progress.update(self._task, note=text)


@contextmanager
def bar(title: str, total: int, there: int = 0) -> Iterator[Bar]:
    """Show a bar on stderr, if it is a terminal, while the body runs; `there` of the bytes were there before."""
    from huggingface_hub.utils import are_progress_bars_disabled
    from rich import progress
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    columns = (
        progress.TextColumn(escape(title)),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}"),
    )
    disable = not console.is_terminal or are_progress_bars_disabled()
    with progress.Progress(*columns, console=console, disable=disable, transient=True) as shown:
        yield Bar(shown, shown.add_task("", total=total, completed=there, note=""))
