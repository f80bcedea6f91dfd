"""A run's folder: metrics.jsonl line by line, and models, each of them a model's folder; knows no loop.

step-000100/    a model's folder, recipe.yaml, and state/: what training needs to go on from there
final/          a model's folder and recipe.yaml
metrics.jsonl   a line for every step and every validation
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace as changed
from pathlib import Path
from types import TracebackType
from typing import Any

from lathe import checkpoint
from lathe.errors import UsageError
from lathe.signals import once
from lathe.tokenizer import Tokenizer
from lathe.training import curve, metrics, report, saves
from lathe.training import state as states
from lathe.training.about import About
from lathe.training.loop import Step
from lathe.training.report import Report
from lathe.transforms.group import Group


class Run:
    """A folder that a training writes to: its models as `step-000100/` and `final/`, and what it measured.

    folder: made if it is not there. The metrics of an earlier run in it are kept, under a number. replace: models that
    are there may be replaced, each when the new one is whole. resumed: the step's folder that the training goes on
    from, of this run or another, and how far it was, whose `reached` the loop begins with: metrics begin with those up
    to there. keep: of the steps saved, the last so many stay, and the one with the lowest validation loss; None keeps
    all.

    Where several processes train, each has a Run of the same folder, and writes its part of each model and state.

    training, validation: step and loss, as far as it came. progress: of the training.

    Raises:
        UsageError: the folder holds models of an earlier run, or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        replace: bool = False,
        resumed: tuple[Path, states.Progress] | None = None,
        keep: int | None = None,
        about: About | None = None,
    ) -> None:
        same = resumed is not None and resumed[0].resolve().parent == folder.resolve()
        refuse(folder, replace or same)
        self.folder = folder
        self.about = about or About(folder.name)
        self.report = Report(folder, self.about.title, self.about.recipe, self.about.facts)
        self.progress = states.Progress() if resumed is None else resumed[1]
        lines = None if resumed is None else metrics.read(resumed[0].parent, resumed[1].reached.steps)
        self.training = [(line["step"], line["loss"]) for line in lines or () if "loss" in line]
        self.validation = [(line["step"], line["validation_loss"]) for line in lines or () if "validation_loss" in line]
        for line in lines or ():
            self.report.take(line)
        self.first = Group.joined().rank == 0
        begun = self.progress.reached.steps if same else 0
        newest = max(map(saves.number, saves.steps(folder)), default=0)
        try:
            if self.first:
                folder.mkdir(parents=True, exist_ok=True)
                checkpoint.recover(folder)
                self.metrics = metrics.Metrics(folder, lines or (), keep=not same or begun < newest)
        except OSError as error:
            raise UsageError(f"Cannot write to {folder}: {error.strerror}.", fix="Choose another --out-dir.") from None
        self.finished = False
        self.saves = saves.Saves(folder, replace or same, keep, begun)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is not KeyboardInterrupt:  # whoever interrupts twice does not want to wait
                self.saves.wait()
        finally:
            if self.first:
                self.metrics.close()
                for logger in self.about.loggers:
                    logger.close()
                self.report.status = "finished" if self.finished and error is None else "stopped"
                # On a full disk the error at hand says more than that there is no room for a page.
                with suppress(OSError) if error is not None else nullcontext():
                    self.report.write()

    @property
    def tokens(self) -> int:
        """Learned from."""
        return self.progress.reached.tokens

    @property
    def seconds(self) -> float:
        """In steps, without validation."""
        return self.progress.seconds

    def step(self, step: Step) -> None:
        """Record a step: a line of metrics.jsonl, on disk as soon as it is written."""
        self.training.append((step.number, step.loss))
        self.progress = changed(self.progress, reached=step.reached, seconds=self.seconds + step.seconds)
        speed, gauge = step.tokens / step.seconds, self.about.gauge
        self.report.total = step.total
        self._line(
            step=step.number,
            loss=step.loss,
            lr=step.lr,
            gradient_norm=step.gradient_norm,
            tokens=self.tokens,
            epoch=round(step.reached.epochs, 4),
            seconds=round(step.reached.seconds, 3),
            tokens_per_second=round(speed, 1),
            **({} if gauge is None else gauge.read(speed)),
        )

    def validated(self, number: int, loss: float) -> None:
        """Record a validation."""
        self.validation.append((number, loss))
        if self.progress.best is None or loss < self.progress.best:
            self.progress = changed(self.progress, best=loss, best_step=number)
        self._line(step=number, validation_loss=loss)

    def examined(self, number: int, figures: Mapping[str, float]) -> None:
        """Record what an evaluation on tasks gave, by "task/metric"."""
        self._line(step=number, **{f"{report.TASK}{name}": value for name, value in figures.items()})

    def sample(self, number: int, text: str) -> None:
        """Record what the model wrote."""
        if self.first:
            for logger in self.about.loggers:
                logger.text(number, text)
        self._line(step=number, sample=text)

    def _line(self, **values: Any) -> None:
        if not self.first:
            return
        self.metrics.write(**values)
        self.report.take(values)
        self.report.refresh()
        numbers = {key: value for key, value in values.items() if key != "step" and not isinstance(value, str)}
        for logger in self.about.loggers if numbers else ():
            logger.numbers(values["step"], numbers)

    def save(
        self,
        name: str,
        model: saves.Model,
        config: Mapping[str, Any],
        *,
        generation: Mapping[str, Any],
        tokenizer: Tokenizer,
        recipe: str,
        training: states.Training | None = None,
    ) -> Path:
        """Have a model's folder written, whole or not at all, and return its path. `wait` returns when it is there.

        model: a decoder; by their names in memory the tensors that this one of several processes writes, of a layer all
        or none; or an adapter's files (`checkpoint.adapter_files`). What is in memory may change as soon as this
        returns. recipe: the options, as YAML. training: with it, the folder has a `state/`, from which `--resume` goes
        on.

        Raises:
            UsageError: the disk has no room. What the save before met is raised here, too.
        """
        self.saves.wait()
        captured = None if training is None else training.capture(self.progress)
        self.finished = name == "final"
        small = saves.Small(generation, tokenizer, recipe)
        return self.saves.begin(name, model, config, small, captured, self.progress.best_step)

    def wait(self) -> None:
        """Return when what was saved is on disk. Raises what went wrong."""
        self.saves.wait()

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
    there = [place for place in (folder / "final", *saves.steps(folder)) if place.exists()]
    if there and not replace:
        fix = "Choose another --out-dir, go on with --resume, or add --overwrite to replace it by the new one's."
        raise UsageError(f"{there[0]} is there already, from an earlier run.", "", fix)


@contextmanager
def interruptible() -> Iterator[Callable[[], int]]:
    """Ctrl-C and SIGTERM let the step at hand end: the function that is given says which signal came, or 0. A second
    one stops at once. 128 and the signal is the exit status that shells expect."""
    caught: list[int] = []
    with once(caught.append):
        yield lambda: caught[0] if caught else 0
