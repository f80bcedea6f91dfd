"""Runs commands in turn, several times each, and turns what they report into medians, ratios and JSON lines."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).with_name("results.jsonl")


def wall(command: Sequence[str]) -> dict[str, float]:
    """Seconds that a whole process takes."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return {"seconds": time.perf_counter() - start}


def reported(command: Sequence[str]) -> dict[str, float]:
    """The JSON object of figures that a process prints as its last line."""
    out = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def compare(
    name: str,
    rivals: Mapping[str, Sequence[str]],
    measure: Callable[[Sequence[str]], dict[str, float]],
    runs: int = 5,
    warm: int = 1,
) -> None:
    """Measure the rivals in turn, after `warm` rounds that are not counted; print and keep a table."""
    figures: dict[str, dict[str, list[float]]] = {rival: {} for rival in rivals}
    for round_ in range(warm + runs):
        for rival, command in rivals.items():
            for figure, value in measure(command).items():
                if round_ >= warm:
                    figures[rival].setdefault(figure, []).append(value)
    first = next(iter(rivals))
    print(f"\n{name}, {runs} runs in turn, {machine()}, {date.today()}\n")
    print("| | figure | median (min - max) | to the first |\n|---|---|---|---|")
    with RESULTS.open("a", encoding="utf-8") as file:
        for rival, by_figure in figures.items():
            for figure, values in by_figure.items():
                middle, others = median(values), figures[first].get(figure)
                ratio = f"{middle / median(others):.2f}" if others else ""  # only the machine has limits
                span = f"{middle:.3g} ({min(values):.3g} - {max(values):.3g})"
                print(f"| {rival} | {figure} | {span} | {ratio} |")
                row = {"benchmark": name, "who": rival, "figure": figure, "values": values, "date": str(date.today())}
                file.write(json.dumps(row | {"machine": machine()}) + "\n")


def machine() -> str:
    """Processor, cores and Python, in a few words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.processor()}, {os.cpu_count()} cores, Python {sys.version.split()[0]}"
