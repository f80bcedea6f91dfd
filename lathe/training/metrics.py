"""What a run measures becomes metrics.jsonl, one JSON object a line, and is read from it again; knows no model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"


class Metrics:
    """The file that is appended to: a line is in it as soon as it is written."""

    def __init__(self, folder: Path, lines: list[dict[str, Any]] | None = None) -> None:
        """lines: what the file begins with; None gives an older file a number and begins a new one."""
        path = folder / FILE
        if lines is None:
            _set_aside(path)
        else:
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


def _set_aside(file: Path) -> None:
    """Give an older file a number, where there is one."""
    if not file.exists():
        return
    number = 1
    while (older := file.with_name(f"{file.stem}-{number}{file.suffix}")).exists():
        number += 1
    file.rename(older)
