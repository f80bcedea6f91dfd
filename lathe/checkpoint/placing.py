"""A file or folder is written beside its place and renamed into it when it is whole: until then nothing is there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lathe.errors import UsageError


@contextmanager
def beside(place: Path, replace: bool = False) -> Iterator[Path]:
    """A path to write a file or folder at, which stands at `place` when the block ends, and is gone if it fails.

    Raises:
        UsageError: something is at `place` already, other than an empty folder, and `replace` is not given.
    """
    if not replace:
        refuse(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    written = place.parent / f".{place.name}.partial-{os.getpid()}"
    _remove(written)
    try:
        yield written
        _move(written, place)
    finally:
        _remove(written)


def refuse(place: Path) -> None:
    """Raise UsageError where something is already."""
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UsageError(f"{place} exists already.", "", "Choose another place, or remove it first.")


def room(place: Path, nbytes: int) -> None:
    """Raise UsageError where the disk of `place` has no room for so many bytes."""
    there = next(parent for parent in place.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if nbytes > free:
        found = f"{place} will take {nbytes / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free."
        raise UsageError(found, "", "Make room, choose another disk, or a smaller format.")


def _move(source: Path, place: Path) -> None:
    """Rename into place; what was there goes only when the new one stands."""
    if source.is_file() and not place.is_dir():
        source.replace(place)
        return
    old = place.parent / f".{place.name}.old-{os.getpid()}"
    if place.exists():
        place.rename(old)
    source.rename(place)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
