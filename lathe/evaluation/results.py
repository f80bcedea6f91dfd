"""What came of a task, as files and back: results.json and a line for each sample, in lm-evaluation-harness's shape.

results.json              figures by task: {"results": {"arc_easy": {"acc,none": 0.25, "acc_stderr,none": 0.01}}, ...}
samples_arc_easy.jsonl    what was asked, what was answered, and what each answer is worth

Knows no model and no task's kind.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from lathe.errors import DataError, MissingError, UsageError
from lathe.evaluation.figures import PAIRED, Figure, Measure, difference

FILE = "results.json"
ITSELF = "none"  # the name of the filter that is none


@dataclass(frozen=True)
class Result:
    """figures: by "metric,filter". samples: a record each, none where they were not kept. count: of samples, of `of`
    that there are. shots: examples before each. config: what makes the task what it is."""

    task: str
    figures: Mapping[str, Figure]
    samples: Sequence[Mapping[str, Any]]
    count: int
    of: int
    shots: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """The figures by their metrics' names alone; of several filters the first counts."""
        found: dict[str, float] = {}
        for name, figure in self.figures.items():
            found.setdefault(name.partition(",")[0], figure.value)
        return found

    def measures(self, name: str) -> dict[str, Measure]:
        """What each sample is worth for a figure, by what tells samples apart; nothing where it is not known."""
        metric, _, chosen = name.partition(",")
        form = (list, tuple) if metric in PAIRED else (int, float)
        return {
            f"{record['doc_id']} {record.get('doc_hash')}": value
            for record in self.samples
            if record.get("filter", ITSELF) == chosen and isinstance(value := record.get(metric), form)
        }


def paired(now: Result, before: Result, name: str) -> Figure | None:
    """By how much a figure is more than before, of the samples that both have, and the standard error of that by pairs.

    None where there are none, or nothing was kept of what each is worth.
    """
    mine, theirs = now.measures(name), before.measures(name)
    both = [key for key in mine if key in theirs]
    metric = name.partition(",")[0]
    return difference(metric, [mine[key] for key in both], [theirs[key] for key in both]) if both else None


def save(folder: Path, results: Sequence[Result], told: Mapping[str, Any]) -> Path:
    """Write the records of each task and all figures. told: what is examined and how; `identity` must be in it.

    Figures of other tasks that are there already stay, if they are of the same model in the same state. Returns the
    path of results.json. Raises UsageError.
    """
    path = folder / FILE
    page = _read(path) if path.is_file() else {}
    if page.get("config", {}).get("identity") != told["identity"]:
        page = {}
    for result in results:
        numbers: dict[str, Any] = {"alias": result.task}
        for name, figure in result.figures.items():
            metric, _, chosen = name.partition(",")
            numbers[name] = figure.value
            numbers[f"{metric}_stderr,{chosen}"] = "N/A" if figure.error is None else figure.error
        page.setdefault("results", {})[result.task] = numbers
        page.setdefault("configs", {})[result.task] = dict(result.config)
        page.setdefault("n-shot", {})[result.task] = result.shots
        page.setdefault("n-samples", {})[result.task] = {"original": result.of, "effective": result.count}
    page |= {"config": dict(told), "model_name": told.get("model"), "date": datetime.now().isoformat("T", "seconds")}
    try:
        for result in results:
            lines = (json.dumps(record, ensure_ascii=False, default=str) + "\n" for record in result.samples)
            _write(folder / samples_name(result.task), "".join(lines))
        _write(path, json.dumps(page, indent=2, ensure_ascii=False, default=str) + "\n")
    except OSError as error:
        raise UsageError(f"Cannot write to {folder}: {error.strerror}.", "", "Choose another --out-dir.") from None
    return path


def load(place: Path) -> dict[str, Result]:
    """The results in a results.json, or in a folder with one, by task. Raises MissingError, DataError."""
    path = next((p for p in (place, place / FILE, place / "evaluate" / FILE) if p.is_file()), None)
    if path is None:
        raise MissingError(f"{place} holds no results.", f"It should be a {FILE}, or a folder with one.")
    page = _read(path)
    try:
        return {task: _result(path.parent, page, task, numbers) for task, numbers in page["results"].items()}
    except (KeyError, TypeError, AttributeError, ValueError):
        raise DataError(f"{path} is no page of results.", 'It should have "results" by tasks.') from None


def _result(folder: Path, page: Mapping[str, Any], task: str, numbers: Mapping[str, Any]) -> Result:
    figures = {}
    for name, value in numbers.items():
        metric, comma, chosen = name.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            error = numbers.get(f"{metric}_stderr,{chosen}")
            figures[name] = Figure(value, error if isinstance(error, (int, float)) else None)
    samples = list(_lines(folder / samples_name(task)))
    count = page.get("n-samples", {}).get(task, {})
    shots = page.get("n-shot", {}).get(task, 0)
    config = page.get("configs", {}).get(task, {})
    return Result(task, figures, samples, count.get("effective", 0), count.get("original", 0), shots, config)


def samples_name(task: str) -> str:
    plain = re.sub(r"[^\w.-]+", "_", task)
    return f"samples_{plain}.jsonl"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        yield from map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])


def _read(path: Path) -> dict[str, Any]:
    try:
        page = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}.", "", "Remove it, or choose another --out-dir.") from None
    if not isinstance(page, dict):
        raise DataError(f"{path} is no page of results.", "It should be a JSON object.")
    return page


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    beside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def shown(figure: Figure, signed: bool = False) -> str:
    """For people: 0.4123 ±0.0140."""
    digits = 2 if abs(figure.value) >= 100 else 4
    error = "" if figure.error is None or math.isnan(figure.error) else f" ±{figure.error:.{digits}f}"
    return f"{figure.value:{'+' if signed else ''}.{digits}f}{error}"
