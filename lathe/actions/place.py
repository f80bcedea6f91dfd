"""MODEL, as it is typed, becomes the place where its weights lie; says what lies there and is not touched."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from lathe import hub


@dataclass(frozen=True, kw_only=True)
class Places:
    """What every action that finds a model has in common."""

    checkpoints: Path = Path("checkpoints")
    """Where models named by their repo id are looked for and downloaded to."""


def weights_at(model: str, checkpoints: Path) -> Path:
    """As `hub.find`. Of a training's step the weights are taken, and what only --resume reads is left alone."""
    place = hub.find(model, checkpoints)
    if (place / "state").is_dir():
        print(f"{place} is a step of a training: its weights are taken, its state/ is left alone.", file=sys.stderr)
    return place


def named(model: str) -> str:
    """What a model is called by clients: its repo id, or the name of its folder or file, whose path is not theirs."""
    return Path(model).resolve().name if Path(model).exists() else model


def plain(name: str) -> str:
    """A name as one part of a path."""
    return name.replace("/", "--")
