"""A downloaded folder says where it is from: repo, revision and which files are whole, in a small JSON file.

The note is written last. So a file that it names is there in full, and a folder with a note is never mixed from two
revisions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

NAME = ".download.json"


@dataclass(frozen=True)
class Note:
    repo: str
    revision: str
    """As it was asked for: a branch, a tag or a commit."""
    commit: str
    """What that was when it was downloaded."""
    files: Mapping[str, str]
    """The names of the files that are whole -> the digest each was verified with, or ''."""

    def write(self, folder: Path) -> None:
        """Put the note into `folder`, over the one there."""
        beside = folder / f"{NAME}.new"
        beside.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        os.replace(beside, folder / NAME)  # noqa: PTH105  as atomic on Windows


def read(folder: Path) -> Note | None:
    """The note in `folder`; None if there is none, or none that can be read."""
    try:
        told = json.loads((folder / NAME).read_text(encoding="utf-8"))
        note = Note(told["repo"], told["revision"], told["commit"], dict(told["files"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    parts = [note.repo, note.revision, note.commit, *note.files, *note.files.values()]
    return note if all(isinstance(part, str) for part in parts) else None
