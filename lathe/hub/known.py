"""Well-known repos as a table: id, family (`model_type`), parameters, notes. For `lathe models`, and to spell ids."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from lathe.errors import did_you_mean


class Known(NamedTuple):
    repo: str
    family: str
    """The `model_type` of its config.json."""
    parameters: str
    """In billions or millions, those at work for one token after a slash: "30.5B/3.3B"."""
    note: str
    """ "gated", where the owner must be asked."""


@functools.cache
def known() -> tuple[Known, ...]:
    """The table, in the order of the file."""
    text = (resources.files("lathe.hub") / "known.csv").read_text(encoding="utf-8")
    return tuple(Known(**row) for row in csv.DictReader(text.splitlines()))


def below(checkpoints: Path) -> Iterator[str]:
    """Names of the models below `checkpoints`, as they are typed."""
    for pattern in ("*", "*/*"):
        for path in checkpoints.glob(pattern):
            if path.is_dir() and not path.name.startswith("."):
                yield path.relative_to(checkpoints).as_posix()


def meant(typed: str, others: Iterable[str] = ()) -> str:
    """'Did you mean "x"?' for the well-known repo, or the name of `others`, nearest to `typed`; '' when none is near.

    One that differs only by the owner, or by having none, or by the case of letters is nearest.
    """
    names = [*others, *(row.repo for row in known())]
    same = [name for name in names if _tail(name) == _tail(typed)]
    return f'Did you mean "{same[0]}"?' if same else did_you_mean(typed, names)


def _tail(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2].casefold()
