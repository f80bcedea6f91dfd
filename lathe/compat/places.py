"""The name of a model or a path as LitGPT's users type it becomes the one that there is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lathe import hub
from lathe.compat.table import MODELS

STEP = re.compile(r"step-0*(\d+)")


def found(path: str) -> str:
    """The path, or where what it names lies here: LitGPT numbers the steps of a pretraining with eight digits, and
    names files of weights where Lathe names their folders."""
    place = Path(path)
    if not path or os.path.exists(path):  # noqa: PTH110  Path.exists raises for a name too long, as a configuration is
        return path
    named = place.name.startswith("lit_model")
    folder = place.parent if named else place
    if named and os.path.isdir(folder / "final"):  # noqa: PTH112
        folder /= "final"
    if step := STEP.fullmatch(folder.name):
        beside = (
            one for one in folder.parent.glob("step-*") if (two := STEP.fullmatch(one.name)) and two[1] == step[1]
        )
        folder = next(beside, folder)
    return folder.as_posix() if os.path.isdir(folder) else path  # noqa: PTH112


def model(name: str) -> str:
    """The repo that one of LitGPT's names of models stands for; anything else as it is."""
    known = hub.known()
    if "/" in name or Path(name).exists() or name in {one.family for one in known}:
        return name
    ends = {one.repo.rpartition("/")[2].casefold(): one.repo for one in reversed(known)}
    return MODELS.get(name) or ends.get(name.casefold(), name)


def shape(model_config: Mapping[str, Any]) -> str:
    """The config.json, as text, of the model that LitGPT's options describe. Raises ConfigError."""
    from lathe.families import litgpt

    return json.dumps(litgpt.config(model_config))
