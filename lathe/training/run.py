"""A run's folder: metrics.jsonl line by line, and models, each of them a model's folder; knows no loop."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from lathe import checkpoint
from lathe.errors import UsageError
from lathe.model.decoder import Decoder
from lathe.tokenizer import Tokenizer
from lathe.training import curve
from lathe.training.loop import Step


class Run:
    """A folder that a training writes to: its models as `step-000100/` and `final/`, and what it measured.

    folder: made if it is not there. The metrics of an earlier run in it are kept, under a number. replace: models that
    are there may be replaced, each when the new one is whole.

    training, validation: step and loss, as far as it came. tokens, seconds: of the training.

    Raises:
        UsageError: the folder holds models of an earlier run, or cannot be written.
    """

    def __init__(self, folder: Path, replace: bool = False) -> None:
        refuse(folder, replace)
        self.folder, self.replace = folder, replace
        self.training: list[tuple[float, float]] = []
        self.validation: list[tuple[float, float]] = []
        self.tokens, self.seconds = 0, 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _set_aside(folder / "metrics.jsonl")
            self.metrics = (folder / "metrics.jsonl").open("x", encoding="utf-8", buffering=1)
        except OSError as error:
            raise UsageError(f"Cannot write to {folder}: {error.strerror}.", fix="Choose another --out-dir.") from None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.metrics.close()

    def step(self, step: Step) -> None:
        """Record a step: a line of metrics.jsonl, on disk as soon as it is written."""
        self.training.append((step.number, step.loss))
        self.tokens += step.tokens
        self.seconds += step.seconds
        self._line(
            step=step.number,
            loss=step.loss,
            lr=step.lr,
            gradient_norm=step.gradient_norm,
            tokens=self.tokens,
            seconds=round(self.seconds, 3),
            tokens_per_second=round(step.tokens / step.seconds, 1),
        )

    def validated(self, number: int, loss: float) -> None:
        """Record a validation."""
        self.validation.append((number, loss))
        self._line(step=number, validation_loss=loss)

    def _line(self, **values: float) -> None:
        self.metrics.write(json.dumps(values) + "\n")

    def save(
        self,
        name: str,
        decoder: Decoder,
        config: Mapping[str, Any],
        *,
        generation: Mapping[str, Any],
        tokenizer: Tokenizer,
        recipe: str,
    ) -> Path:
        """Write a model's folder, whole or not at all, and return its path. recipe: the options, as YAML."""
        checkpoint.save(
            self.folder / name,
            decoder,
            config,
            generation=generation,
            tokenizer=tokenizer,
            files={"recipe.yaml": recipe},
            replace=self.replace,
        )
        return self.folder / name

    def draw(self, title: str) -> str:
        """The loss curve for a terminal; it is written to loss.png too, or the text says what that needs."""
        text = curve.text(self.training, self.validation)
        try:
            curve.png(self.folder / "loss.png", self.training, self.validation, title)
        except ImportError:
            return f'{text}\nThe curve as loss.png needs matplotlib: pip install "lathe-llm[plot]"'
        return text


def refuse(folder: Path, replace: bool) -> None:
    """Raise UsageError where a run would write over the models of an earlier one, or over a file."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, and a run needs a folder.", "", "Choose another --out-dir.")
    there = [place for place in (folder / "final", *sorted(folder.glob("step-*"))) if place.exists()]
    if there and not replace:
        fix = "Choose another --out-dir, or add --overwrite to replace it once the new one is finished."
        raise UsageError(f"{there[0]} is there already, from an earlier run.", "", fix)


def _set_aside(file: Path) -> None:
    """Give an older file a number, where there is one."""
    if not file.exists():
        return
    number = 1
    while (older := file.with_name(f"{file.stem}-{number}{file.suffix}")).exists():
        number += 1
    file.rename(older)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM let the step at hand end: the function that is given says whether one came. A second one
    stops at once."""
    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(caught)
    finally:
        restore()
