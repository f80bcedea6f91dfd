"""Steps become a progress bar on a terminal, and plain lines where there is none."""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from lathe.training.gauge import Gauge
from lathe.training.loop import Step

RECENT = 20  # steps, over which the speed is taken
LINES = 20  # of a run without a terminal


class Display:
    """The progress of `total` steps, on `console` (stderr). gauge: what the speed is measured by."""

    def __init__(self, console: Console, total: int, gauge: Gauge | None = None) -> None:
        self.console, self.total, self.gauge = console, total, gauge
        self.recent: deque[Step] = deque(maxlen=RECENT)
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]}  {task.fields[left]} left"),
            console=console,
            expand=True,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=total, loss="-", speed="-", left="-")

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()

    def step(self, step: Step) -> None:
        self.recent.append(step)
        seconds = sum(s.seconds for s in self.recent)
        speed = self.speed(sum(s.tokens for s in self.recent) / seconds)
        left = str(timedelta(seconds=round(seconds / len(self.recent) * (self.total - step.number))))
        self.bar.update(self.task, completed=step.number, loss=f"{step.loss:.3f}", speed=speed, left=left)
        if not self.console.is_terminal and step.number % max(1, self.total // LINES) == 0:
            self.say(f"step {step.number}/{self.total}  loss {step.loss:.3f}  {speed}  {left} left")

    def speed(self, tokens_per_second: float) -> str:
        """In words, with the part of the peak that it uses, and the memory."""
        words = [f"{tokens_per_second:,.0f} tokens/s"]
        if self.gauge is not None:
            measured = self.gauge.read(tokens_per_second)
            words.append(f"{measured['peak']:.0%} of peak")
            if "memory" in measured:
                words.append(f"{measured['memory'] / 1e9:.1f} GB")
        return "  ".join(words)

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        self.bar.console.print(text)
