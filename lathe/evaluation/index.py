"""The folder of lm-evaluation-harness's own tasks becomes an index of their names, which is kept: they are thousands of
YAML files, and reading them takes ten seconds of every command that names one.

Needs the extra eval: `answering` imports this file when it is there.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lm_eval.tasks._index import Entry, Kind, TaskIndex

from lathe.data.unpacking import cache


def entries(root: Path) -> dict[str, Entry]:
    """What `TaskIndex.build` finds in a folder, but for each file's contents, which are read again when its task is.

    It is kept in `cache()`, a file for each folder, and found anew when a file of the folder is another than then.
    """
    file = cache() / "tasks" / f"{blake2b(str(root).encode(), digest_size=8).hexdigest()}.json"
    stamp, kept = _stamp(root), _kept(file)
    if kept.get("stamp") != stamp:
        found = TaskIndex.build([root]).items()
        kept = {"stamp": stamp, "tasks": {name: _written(entry, root) for name, entry in found}}
        with suppress(OSError):  # where nothing can be kept it is found every time
            _keep(file, kept)
    return {name: _entry(name, root, *told) for name, told in kept["tasks"].items()}


def _stamp(root: Path) -> str:
    """Another one when a file that is no program's has come, gone or changed."""
    stamp = blake2b(digest_size=16)
    for path in _files(root):
        told = path.stat()
        stamp.update(f"{path}\0{told.st_size}\0{told.st_mtime_ns}\0".encode())
    return stamp.hexdigest()


def _files(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.suffix not in (".py", ".pyc") and path.is_file())


def _kept(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged
        return {}


def _keep(file: Path, value: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, delete=False) as made:
        json.dump(value, made)
    Path(made.name).replace(file)


def _written(entry: Entry, root: Path) -> tuple[str, str | None, list[str]]:
    return entry.kind.name, entry.yaml_path and str(entry.yaml_path.relative_to(root)), sorted(entry.tags)


def _entry(name: str, root: Path, kind: str, path: str | None, tags: list[str]) -> Entry:
    return Entry(name, Kind[kind], path and root / path, tags=set(tags))
