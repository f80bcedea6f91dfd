"""What --resume asks for becomes the step to go on from, if it belongs to this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lathe import checkpoint
from lathe.errors import MissingError, UsageError
from lathe.training import saves, stored


def find(folder: Path, wanted: bool | str | Path) -> Path | None:
    """The step's folder to go on from; None to begin anew.

    folder: the run's. wanted: "auto" is its newest whole step, or a new run where there is none; True insists on one;
    a path is a step's folder, or that of a run, whose newest it is. What a save left that broke off is put away.

    Raises:
        MissingError: there is none, or its state/ was removed.
        CheckpointError: its state is damaged, or of another version of Lathe.
    """
    if wanted is False:
        return None
    named = wanted is not True and wanted != "auto"
    place = Path(str(wanted)) if named else folder
    if place.is_dir():
        checkpoint.recover(place)
    if named and (place / "state").is_dir():
        found = place
    else:
        whole = [step for step in saves.steps(place) if (step / "state" / stored.FILE).is_file()]
        if not whole and wanted == "auto":
            return None
        if not whole:
            raise MissingError(
                f"{place} has no step with a state/ to go on from.",
                "A run goes on from OUT_DIR/step-000100 and the like.",
                "Leave out --resume to begin anew, or take weights alone with --initial-checkpoint.",
            )
        found = whole[-1]
    stored.read(found / "state")
    return found


def check(step: Path, recipe: Mapping[str, Any], bound: Sequence[str]) -> None:
    """Compare the options with those that the step was saved under. bound: the keys, as "train.max_seq_length", that
    must not change in a run.

    Raises:
        UsageError: one of them is another.
    """
    before = checkpoint.read_yaml(step / "recipe.yaml")
    for key in bound:
        then, now = _value(before, key), _value(recipe, key)
        if then != now:
            option = f"--{key.replace('_', '-')}"
            raise UsageError(
                f"{option} is {now}, and the run in {step.parent} was begun with {then}.",
                "A resumed run goes on as it began.",
                f"Take {option} {then}, as in {step / 'recipe.yaml'}, or begin a new run in another --out-dir.",
            )


def _value(recipe: Mapping[str, Any], key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
