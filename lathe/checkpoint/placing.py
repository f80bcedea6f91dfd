"""A file or folder is written beside its place and renamed into it when it is whole: until then nothing is there.

Whatever moment a process or a machine ends at, what has the right name is whole, and `recover` puts away the rest.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lathe.errors import UsageError


@contextmanager
def beside(place: Path, replace: bool = False) -> Iterator[Path]:
    """A path to write a file or folder at, which stands at `place` when the block ends, and is gone if it fails. It is
    on the disk, and not only in the machine's memory, before it gets its name.

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
        _sync(written)
        _move(written, place)
        _flush(place.parent)
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


def remove(place: Path) -> None:
    """Remove a folder that must not be seen in part: it loses its name first."""
    gone = place.parent / f".{place.name}.gone-{os.getpid()}"
    place.rename(gone)
    _flush(place.parent)
    _remove(gone)


def recover(folder: Path) -> None:
    """Put away what a process left in a folder that ended while it wrote there; what was being replaced is put back."""
    for path in sorted(folder.glob(".*")):
        if match := re.fullmatch(r"\.(.+)\.(partial|old|gone)-\d+", path.name):
            place = folder / match[1]
            if match[2] == "old" and not place.exists():
                path.rename(place)
            else:
                _remove(path)


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


def _sync(path: Path) -> None:
    """Have the disk keep a file, or a folder and all that is in it."""
    for inside in path.iterdir() if path.is_dir() else ():
        _sync(inside)
    _flush(path)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # whose folders cannot be opened, and need not be
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
