"""A folder that torch.distributed.checkpoint wrote becomes Refs: each reads the chunks that its box lies in.

`.metadata` is a pickle program that says of each tensor how it was cut, and in which bytes of which file each chunk
is a file of torch.save's. Optimizer states in it become Refs too, which nobody need read.
https://docs.pytorch.org/docs/stable/distributed.checkpoint.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.weights import beside, pickled, storage
from lathe.weights.program import Class, Function, Record, run
from lathe.weights.safetensors import mapped
from lathe.weights.tensors import Box, Ref, possible

METADATA = ".metadata"
MAX_METADATA = 256 << 20  # bytes: it counts every chunk of every tensor on every rank


def is_folder(path: Path) -> bool:
    """Whether torch.distributed.checkpoint wrote this."""
    return (path / METADATA).is_file()


def open(folder: Path) -> dict[str, Ref]:
    """The tensors of the folder by the names in it, such as "model.lm_head.weight". Reads no tensor.

    Raises:
        UnsafeError: the metadata want something imported that they have no need of.
        CheckpointError: they are damaged, or a chunk of a tensor is not where they say.
    """
    path = folder / METADATA
    if path.stat().st_size > MAX_METADATA:
        raise _damaged(path, f"it is longer than {MAX_METADATA} bytes")
    tree = run(BytesIO(path.read_bytes()), NAMES, _no_storage, path)
    try:
        kinds, places = _tables(tree)
        files = {place.file: folder / place.file for place in places.values()}
        for name, file in files.items():
            if not file.is_file():
                raise CheckpointError(
                    f"{folder} lacks {name}, which {METADATA} names.",
                    fix="Finish the copy; each process that saved wrote files of its own.",
                )
        stored = {name: _File(file, file.stat().st_size, cache(partial(mapped, file))) for name, file in files.items()}
        tensors = {name: kind for name, kind in kinds.items() if kind.kind == "TensorStorageMetadata"}
        return {name: _tensor(folder, name, record, places, stored) for name, record in tensors.items()}
    except (KeyError, ValueError) as error:
        raise _damaged(path, str(error)) from error


@dataclass(frozen=True)
class _File:
    """A file of shards, mapped when it is first read."""

    path: Path
    size: int
    bytes: Callable[[], Tensor]


@dataclass(frozen=True)
class _Place:
    """Where a chunk's bytes are."""

    file: str
    begin: int
    length: int


@dataclass(frozen=True)
class _Chunk:
    """A part of a tensor: the box it fills, and how to get what fills it."""

    box: Box
    ref: Callable[[], Ref]


def _tables(tree: Any) -> tuple[dict[str, Record], dict[tuple[str, tuple[int, ...]], _Place]]:
    """What is said of each name, and where each chunk is, by name and offsets."""
    match tree:
        case Record("Metadata", {"state_dict_metadata": dict(kinds), "storage_data": dict(places)}):
            return (
                {name: kind for name, kind in kinds.items() if type(name) is str and isinstance(kind, Record)},
                dict(_place(index, info) for index, info in places.items()),
            )
    raise ValueError("it holds no metadata of a checkpoint")


def _place(index: Any, info: Any) -> tuple[tuple[str, tuple[int, ...]], _Place]:
    match index, info:
        case (
            Record("MetadataIndex", {"fqn": str(name)} as key),
            Record("_StorageInfo", {"relative_path": str(file), "offset": int(begin), "length": int(length)} as rest),
        ) if rest.get("transform_descriptors") is None and min(begin, length) >= 0:
            offsets = key.get("offset")
            # A name, not a path: what lies outside of the folder is not read.
            if file not in ("", "..") and Path(file).name == file:
                return (name, tuple(offsets) if isinstance(offsets, tuple) else ()), _Place(file, begin, length)
    raise ValueError("a chunk is not described as torch does")


def _tensor(
    folder: Path,
    name: str,
    record: Record,
    places: Mapping[tuple[str, tuple[int, ...]], _Place],
    files: Mapping[str, _File],
) -> Ref:
    match record.fields:
        case {
            "size": tuple(shape),
            "chunks": list(parts),
            "properties": Record("TensorProperties", {"state": (torch.dtype() as dtype, *_)}),
        } if possible(shape):
            pass
        case _:
            raise ValueError(f'tensor "{name}" has no proper size, type and chunks')
    source = f'"{name}" in {folder}'
    chunks = []
    for part in parts:
        match part:
            case Record(_, {"offsets": tuple(low), "sizes": tuple(lengths)}) if (
                len(low) == len(lengths) == len(shape) and possible(low) and possible(lengths)
            ):
                if not all(lengths) and all(shape):
                    continue  # a rank that had nothing of it
                place = places[name, low]
                file = files[place.file]
                if place.begin + place.length > file.size:
                    raise ValueError(f'a chunk of tensor "{name}" reaches beyond the end of {place.file}')
                box = tuple(slice(a, a + n) for a, n in zip(low, lengths, strict=True))
                chunks.append(_Chunk(box, cache(partial(_read, file, place, lengths, dtype, source))))
            case _:
                raise ValueError(f'a chunk of tensor "{name}" has no proper offsets and sizes')
    if not _tiled([chunk.box for chunk in chunks], shape):
        raise ValueError(f'the chunks of tensor "{name}" do not make it up')
    return Ref(shape, dtype, partial(_fetch, chunks, dtype), source)


def _tiled(boxes: Sequence[Box], shape: Sequence[int], dim: int = 0) -> bool:
    """Whether the boxes fill the shape, each place once, as a process cuts it: along one dimension, then another."""
    if dim == len(shape):
        return len(boxes) == 1
    groups: dict[tuple[int, int], list[Box]] = {}
    for box in boxes:
        groups.setdefault((box[dim].start, box[dim].stop), []).append(box)
    edge = 0
    for start, stop in sorted(groups):
        if start != edge:
            return False
        edge = stop
    return edge == shape[dim] and all(_tiled(group, shape, dim + 1) for group in groups.values())


def _read(file: _File, place: _Place, shape: tuple[int, ...], dtype: torch.dtype, source: str) -> Ref:
    """What is stored of a chunk."""
    ref = pickled.part(file.path, place.begin, place.length, file.bytes)
    if not isinstance(ref, Ref) or (ref.shape, ref.dtype) != (shape, dtype):
        raise CheckpointError(
            f"{source} has a chunk that is not of the shape and type it should be.", fix="Copy the folder again."
        )
    return ref


def _fetch(chunks: Sequence[_Chunk], dtype: torch.dtype, box: Box) -> Tensor:
    """What lies in the box: a view of the one chunk that has it all, or a tensor put together from several."""
    out: Tensor | None = None
    for chunk in chunks:
        shared = [
            slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(chunk.box, box, strict=True)
        ]  # fmt: skip
        if any(part.start >= part.stop for part in shared):
            continue
        inner = tuple(slice(s.start - c.start, s.stop - c.start) for s, c in zip(shared, chunk.box, strict=True))
        found = chunk.ref().fetch(inner)
        if found.numel() == prod(b.stop - b.start for b in box):
            return found
        if out is None:
            out = torch.empty([b.stop - b.start for b in box], dtype=dtype)
        out[tuple(slice(s.start - b.start, s.stop - b.start) for s, b in zip(shared, box, strict=True))] = found
    return torch.empty([b.stop - b.start for b in box], dtype=dtype) if out is None else out


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {why}.", fix="Copy the folder again.")


def _no_storage(pid: Any) -> Any:
    raise ValueError("a tensor among the metadata")


def _word(args: tuple) -> Any:
    """A layout, or a memory format's number: neither says anything of a tensor on disk."""
    if len(args) != 1:
        raise ValueError("a layout that is not one word")
    return args[0]


METADATA_CLASSES = """
    Metadata TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata TensorProperties MetadataIndex StorageMeta
""".split()
NAMES: dict[str, Any] = {
    **{f"torch.distributed.checkpoint.metadata.{name}": Class(name) for name in METADATA_CLASSES},
    "torch.distributed.checkpoint.filesystem._StorageInfo": Class("_StorageInfo"),
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING": Function(_word),
    # where these stood before PyTorch 2.3
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties": Class("TensorProperties"),
    "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING": Function(_word),
    "torch.serialization._get_layout": Function(_word),
    **{name: storage.NAMES[name] for name in ("torch.Size", *map(str, storage.DTYPES))},
    **{name: value for name, value in beside.NAMES.items() if name.startswith("pathlib")},
}
