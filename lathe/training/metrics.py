"""What a run measures becomes metrics.jsonl, one JSON object a line, and is read from it again; knows no model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"


class Metrics:
    """The file that is appended to: a line is in it as soon as it is written."""

    def __init__(self, folder: Path, lines: Sequence[dict[str, Any]] = (), keep: bool = True) -> None:
        """lines: what the file begins with. keep: an older file is kept, under a number."""
        path = folder / FILE
        if keep:
            _keep(path)
        beside = path.with_name(f".{FILE}.partial-{os.getpid()}")
        beside.write_text("".join(map(_line, lines)), encoding="utf-8")
        beside.replace(path)
        self.file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, **values: Any) -> None:
        self.file.write(_line(values))

    def close(self) -> None:
        self.file.close()


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


def read(folder: Path, until: int | None = None) -> list[dict[str, Any]]:
    """The lines of a run's folder, those of steps after `until` left out, and one that was cut short too."""
    path = folder / FILE
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:  # the process ended while it wrote
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int) and (until is None or line["step"] <= until):
            found.append(line)
    return found


def _keep(file: Path) -> None:
    """Copy a file under a number, where there is one with something in it: it stays until another takes its place."""
    if not file.exists() or not file.stat().st_size:
        return
    number = 1
    while (older := file.with_name(f"{file.stem}-{number}{file.suffix}")).exists():
        number += 1
    shutil.copyfile(file, older)
