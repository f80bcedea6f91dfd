"""Names that stand for well-known data, as LitGPT's users know them: what is trained on, and what is held out.

They are rows of presets.csv: a name, the data's words (see `sources`), and the part that is held out or the words of
the data that are.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from lathe.errors import UsageError

FRACTION = 0.05  # held out where nothing is said
SIDES = ("val", "valid", "validation", "dev", "test")  # what data to validate on is called, beside `train`
PLACED = ("JSON", "TextFiles", "LitData")  # LitGPT's names for data in a place that has to be told


@dataclass(frozen=True)
class Preset:
    """data, held: words of data; what is held out may be a part of the other instead."""

    name: str
    data: tuple[str, ...]
    held: float | tuple[str, ...]


@cache
def presets() -> dict[str, Preset]:
    """All presets by their names in small letters."""
    rows = list(
        csv.DictReader((resources.files("lathe.data") / "presets.csv").read_text(encoding="utf-8").splitlines())
    )
    return {row["name"].lower(): Preset(row["name"], *_read(row)) for row in rows}


def _read(row: dict[str, str]) -> tuple[tuple[str, ...], float | tuple[str, ...]]:
    try:
        return tuple(row["data"].split()), float(row["held"])
    except ValueError:
        return tuple(row["data"].split()), tuple(row["held"].split())


def named(word: str) -> Preset | None:
    """The preset of this name. A file or folder of the same name goes before it."""
    if word in PLACED and not Path(word).exists():
        raise UsageError(f"{word} does not say where the data is.", fix="Give the file or folder itself: --data FILE.")
    found = presets().get(word.lower())
    return None if found is None or Path(word).exists() else found


def sides(
    data: str | Sequence[str], fraction: float | None, apart: Sequence[str] = ()
) -> tuple[tuple[str, ...], float | tuple[str, ...]]:
    """The words of the data to train on, and what is held out: a part of them, or the words of other data.

    Data that is given `apart` is held out. A preset says what is, and so does a folder with `train.*` (or `train/`) and
    `val.*`. All else gives up a `fraction`, or 0.05 where that is None; it also goes before a preset's own.
    """
    words = (data,) if isinstance(data, str) else tuple(data)
    if apart:
        return words, tuple(apart)
    if len(words) != 1:
        return words, FRACTION if fraction is None else fraction
    if preset := named(words[0]):
        if fraction is None or not isinstance(preset.held, float):
            return preset.data, preset.held
        return preset.data, fraction
    if inside := _folder(Path(words[0]).expanduser()):
        return inside
    return words, FRACTION if fraction is None else fraction


def _folder(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    names = {path.name.partition(".")[0].lower(): path for path in reversed(inside)}
    held = next((names[side] for side in SIDES if side in names), None)
    return None if held is None or "train" not in names else ((str(names["train"]),), (str(held),))
