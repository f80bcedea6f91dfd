"""A model of which several processes have parts becomes one folder: each writes files of its own, one joins them.

With one process it is the same: its part is all there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lathe import families
from lathe.checkpoint.saving import SHARD_BYTES, cut, described, file_name, write_config, write_index
from lathe.errors import UsageError
from lathe.weights import rules, safetensors
from lathe.weights.rules import Refs


def files(model: Refs, config: Mapping[str, Any], limit: int = SHARD_BYTES) -> list[Refs]:
    """What each file holds that this process shall write, by the names of the family's files.

    model: by their names in memory the tensors that it has, of a layer all or none: in files they may be one. limit:
    bytes in one file.
    """
    config = described(config)
    named = rules.back(families.rules(config, families.read(config)), model)
    return cut(named, limit) if named else []


def write(folder: Path, files: Sequence[Refs], before: int, count: int) -> None:
    """Write them as the files after number `before`, of `count` that all processes write into the folder."""
    for number, file in enumerate(files, before + 1):
        safetensors.write(folder / file_name(number, count), file)


def join(folder: Path, config: Mapping[str, Any], count: int) -> None:
    """Make a model's folder of one in which all `count` files are: write their index, and config.json.

    Raises:
        UsageError: a file is not there.
    """
    names = [file_name(number, count) for number in range(1, count + 1)]
    if missing := [name for name in names if not (folder / name).is_file()]:
        found = f"{missing[0]}, which another process wrote, is not in {folder}."
        raise UsageError(found, "All machines must write to the same disk.", "Choose an --out-dir that they share.")
    found_in = {name: safetensors.open(folder / name) for name in names}
    if count > 1:
        write_index(folder, found_in)
    write_config(folder, {name: ref for refs in found_in.values() for name, ref in refs.items()}, described(config))
