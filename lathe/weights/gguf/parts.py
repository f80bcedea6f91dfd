"""A GGUF file that was cut into several is one again: the metadata of the first, the tensors of all."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from lathe.errors import CheckpointError, MissingError
from lathe.weights.gguf.reading import Gguf, open

NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
COUNT, NUMBER = "split.count", "split.no"


def whole(path: Path) -> Gguf:
    """A file, with the other parts that lie beside it if it is one of several.

    Raises:
        MissingError: a part is not there.
        CheckpointError: a file is damaged, or the parts are not of one model.
    """
    file = open(path)
    count = file.metadata.get(COUNT, 1)
    if count == 1:
        return file
    named = NAME.fullmatch(path.name)
    if not named or type(count) is not int or int(named[3]) != count:
        raise CheckpointError(
            f"{path} is one of {count} parts of a file, and its name does not say which.",
            "The parts of a model are called NAME-00001-of-00003.gguf and so on.",
        )
    paths = [path.with_name(f"{named[1]}-{number:05}-of-{named[3]}.gguf") for number in range(1, count + 1)]
    gone = [part.name for part in paths if not part.is_file()]
    if gone:
        raise MissingError(
            f"{path.parent} lacks {', '.join(gone[:3])}, {len(gone)} of {count} parts of the model.",
            fix="Finish the download or copy.",
        )
    return _joined(paths)


def _joined(paths: list[Path]) -> Gguf:
    first, *_ = files = [open(path) for path in paths]
    joined = Gguf({key: value for key, value in first.metadata.items() if not key.startswith("split.")}, {})
    for number, (path, file) in enumerate(zip(paths, files, strict=True)):
        if (file.metadata.get(NUMBER), file.metadata.get(COUNT)) != (number, len(paths)):
            raise CheckpointError(f"{path} is not part {number + 1} of {len(paths)}, as its name says.")
        twice = joined.tensors.keys() & file.tensors.keys()
        if twice:
            raise CheckpointError(f"{min(twice)} in {path} also stands in an earlier part of the model.")
        joined.tensors.update(file.tensors)
    return joined


def models(paths: Iterable[Path]) -> list[Path]:
    """One file for each model among these: of those cut into several, the first part that is there."""
    found: dict[tuple[str, ...], Path] = {}
    for path in sorted(paths):
        named = NAME.fullmatch(path.name)
        found.setdefault((named[1], named[3]) if named else (path.name,), path)
    return list(found.values())
