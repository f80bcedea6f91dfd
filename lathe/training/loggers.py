"""What a run measures goes to other programs too: TensorBoard, Weights & Biases, MLflow, or a CSV file.

Each of them is behind `Logger`, and imported when it is asked for.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lathe.errors import MissingError, UsageError, did_you_mean


class Logger(Protocol):
    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """What was measured at a step, by names as in metrics.jsonl."""

    def text(self, step: int, text: str) -> None:
        """What the model wrote at a step."""

    def close(self) -> None:
        """The run is over."""


class Csv:
    """metrics.csv: a line for each number, so that a new name needs no new column."""

    def __init__(self, folder: Path, title: str, recipe: Mapping[str, Any]) -> None:
        path = folder / "metrics.csv"
        new = not path.exists()
        self.file = path.open("a", encoding="utf-8", newline="")
        self.rows = csv.writer(self.file)
        if new:
            self.rows.writerow(("step", "name", "value"))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.writerows((step, name, value) for name, value in values.items())
        self.file.flush()

    def text(self, step: int, text: str) -> None: ...

    def close(self) -> None:
        self.file.close()


class TensorBoard:
    """Event files in `tensorboard/` of the run's folder."""

    def __init__(self, folder: Path, title: str, recipe: Mapping[str, Any]) -> None:
        module = _import("tensorboard", "torch.utils.tensorboard")
        self.writer = module.SummaryWriter(str(folder / "tensorboard"))
        lines = [f"    {name}: {value}" for name, value in flat(recipe).items()]
        self.writer.add_text("recipe", "\n".join([title, "", *lines]))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def text(self, step: int, text: str) -> None:
        self.writer.add_text("sample", "\n".join(f"    {line}" for line in text.splitlines()), step)

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of Weights & Biases, in the project that WANDB_PROJECT names, or `lathe`; WANDB_NAME names the run."""

    def __init__(self, folder: Path, title: str, recipe: Mapping[str, Any]) -> None:
        self.module = _import("wandb", "wandb")
        import os

        project, name = os.environ.get("WANDB_PROJECT", "lathe"), os.environ.get("WANDB_NAME", title)
        self.run = self.module.init(project=project, dir=str(folder), name=name, config=flat(recipe))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def text(self, step: int, text: str) -> None:
        self.run.log({"sample": self.module.Html(f"<pre>{_escaped(text)}</pre>")}, step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says."""

    def __init__(self, folder: Path, title: str, recipe: Mapping[str, Any]) -> None:
        self.module = _import("mlflow", "mlflow")
        self.module.start_run(run_name=title)
        self.module.log_params(flat(recipe))

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self.module.log_metrics(dict(values), step=step)

    def text(self, step: int, text: str) -> None:
        self.module.log_text(text, f"samples/step-{step:06}.txt")

    def close(self) -> None:
        self.module.end_run()


KNOWN: dict[str, Callable[[Path, str, Mapping[str, Any]], Logger]] = {
    "csv": Csv,
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": MLflow,
}


def open(names: Sequence[str], folder: Path, title: str, recipe: Mapping[str, Any]) -> list[Logger]:
    """The loggers of these names. folder: the run's. recipe: its options.

    Raises:
        UsageError: there is no such logger. MissingError: its package is not installed.
    """
    for name in names:
        if name not in KNOWN:
            fix = did_you_mean(name, KNOWN)
            raise UsageError(f'There is no logger "{name}".', f"There are {', '.join(KNOWN)}.", fix)
    folder.mkdir(parents=True, exist_ok=True)
    return [KNOWN[name](folder, title, recipe) for name in names]


def flat(recipe: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Options by their full names: `train.max_steps`."""
    found: dict[str, Any] = {}
    for key, value in recipe.items():
        name = f"{above}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def _import(package: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        found = f"--logger {package} needs the package {package}, which cannot be imported ({error})."
        raise MissingError(found, "", f'Install it: pip install "lathe-llm[{package}]"') from None


def _escaped(text: str) -> str:
    import html

    return html.escape(text)
