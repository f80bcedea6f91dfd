"""The lines of metrics.jsonl, a recipe and facts become report.html: one page that needs no network and no server."""

from __future__ import annotations

import html
import json
import math
import os
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

FILE = "report.html"
PAGE = Path(__file__).with_name("page")
POINTS = 1500  # of a curve: more cannot be seen
SECONDS = 10.0  # between two writings while the run goes on
SAMPLES = 100  # the last ones
TASK = "task/"  # what the names of figures on tasks begin with
SERIES = ("step", "loss", "lr", "gradient_norm", "tokens", "seconds", "tokens_per_second", "peak", "memory")


@dataclass(eq=False)
class Report:
    """Takes lines as they come and writes the page now and then. total: steps there will be. facts: of the model and
    the machine, in words."""

    folder: Path
    title: str
    recipe: str
    facts: Mapping[str, str]
    total: float = math.inf
    status: str = "running"
    series: dict[str, array] = field(default_factory=lambda: {name: array("d") for name in SERIES})
    validation: list[tuple[int, float]] = field(default_factory=list)
    samples: list[tuple[int, str]] = field(default_factory=list)
    tasks: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    written: float = 0.0

    def take(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""
        if "loss" in line:
            for name, values in self.series.items():
                values.append(line.get(name, math.nan))
        if "validation_loss" in line:
            self.validation.append((line["step"], line["validation_loss"]))
        for name in line:
            if name.startswith(TASK):
                self.tasks.setdefault(name.removeprefix(TASK), []).append((line["step"], line[name]))
        if "sample" in line:
            self.samples = [*self.samples[1 - SAMPLES :], (line["step"], line["sample"])]

    def refresh(self) -> None:
        """Write the page if it is old."""
        if time.monotonic() - self.written > SECONDS:
            self.write()

    def write(self) -> None:
        """Write the page beside its place and put it there."""
        beside = self.folder / f".{FILE}.partial-{os.getpid()}"
        beside.write_text(self.page(), encoding="utf-8")
        beside.replace(self.folder / FILE)
        self.written = time.monotonic()

    def page(self) -> str:
        data = {
            "title": self.title,
            "status": self.status,
            "total": int(self.total) if math.isfinite(self.total) else None,
            "left": self.left(),
            "at": time.time(),
            "written": datetime.now().strftime("%Y-%m-%d %H:%M"),
            "series": {name: thin(values, last=name == "step") for name, values in self.series.items()},
            "validation": self.validation,
            "samples": self.samples,
            "tasks": self.tasks,
            "facts": self.facts,
            "recipe": self.recipe,
        }
        # In a script element only "</" and "<!--" would mean something.
        text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
        script = f"{asset('charts.js')}{asset('report.js')}"
        return PARTS.format(title=html.escape(self.title), style=asset("page.css"), data=text, script=script)

    def left(self) -> float | None:
        """Seconds to the end, as fast as the last steps."""
        steps, seconds = self.series["step"][-50:], self.series["seconds"][-50:]
        if len(steps) < 2 or not math.isfinite(self.total) or steps[-1] <= steps[0]:
            return None
        return (self.total - steps[-1]) * (seconds[-1] - seconds[0]) / (steps[-1] - steps[0])


PARTS = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
<main></main>
<script type="application/json" id="run">{data}</script>
<script>
{script}</script>
</html>
"""


def asset(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def thin(values: array, last: bool = False) -> list[float | None]:
    """At most POINTS of them: means of neighbours, or the last of each; None for what was not measured."""
    each = -(-len(values) // POINTS) or 1
    numbers = np.frombuffer(values, dtype=np.float64) if values else np.empty(0)
    edges = range(0, len(numbers), each)
    kept = [float(numbers[i : i + each][-1] if last else numbers[i : i + each].mean()) for i in edges]
    return [round(value, 8) if abs(value) >= 1e-3 else value if math.isfinite(value) else None for value in kept]
