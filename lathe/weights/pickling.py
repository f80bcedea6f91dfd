"""Refs by name become a PyTorch checkpoint, as torch.save writes one: a zip archive, one storage after the other.

https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from typing import IO, Any

import torch

from lathe.weights.safetensors import raw
from lathe.weights.storage import KINDS
from lathe.weights.tensors import Ref

ALIGNMENT = 64  # where torch.save lets storages begin: a mapped tensor is then aligned for any vector instruction


@dataclass(frozen=True, eq=False)
class _Storage:
    """The bytes of one Ref in the archive, under `key`."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True, eq=False)
class _Tensor:
    """A storage seen as a contiguous tensor."""

    storage: _Storage
    shape: tuple[int, ...]


class _Pickler(pickle.Pickler):
    """Writes our stand-ins as torch.save writes what they stand for."""

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        if obj.dtype in CLASSES:
            return "storage", CLASSES[obj.dtype], obj.key, "cpu", obj.count
        return "storage", torch.UntypedStorage, obj.key, "cpu", obj.count * obj.dtype.itemsize

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, _Tensor):
            return NotImplemented
        strides = torch.empty(obj.shape, device="meta").stride()
        args: tuple[Any, ...] = (obj.storage, 0, obj.shape, strides, False, OrderedDict())
        if obj.storage.dtype in CLASSES:
            return torch._utils._rebuild_tensor_v2, args
        return torch._utils._rebuild_tensor_v3, (*args, obj.storage.dtype)


CLASSES = {dtype: getattr(torch, name) for name, dtype in KINDS.items()}  # younger dtypes have no class of storage


def write(path: Path, tree: Mapping[str, Ref]) -> None:
    """Write tensors by name to a new file and sync it, holding a piece of one in memory at a time.

    Names of one and the same Ref share one storage, as tied parameters do in a file of torch.save's. Any torch.load
    reads it, also with weights_only and mapped.
    """
    storages: dict[int, tuple[_Storage, Ref]] = {}
    tensors: dict[str, _Tensor] = {}
    for name, ref in tree.items():
        storage, _ = storages.setdefault(id(ref), (_Storage(str(len(storages)), ref.dtype, prod(ref.shape)), ref))
        tensors[name] = _Tensor(storage, ref.shape)
    program = BytesIO()
    _Pickler(program, protocol=2).dump(tensors)
    texts = {"data.pkl": program.getvalue(), "byteorder": b"little", "version": b"3\n"}
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, text in texts.items():
                with _entry(archive, file, name, len(text)) as entry:
                    entry.write(text)
            for storage, ref in storages.values():
                with _entry(archive, file, f"data/{storage.key}", ref.nbytes) as entry:
                    for piece in ref.pieces():
                        assert piece.dtype == ref.dtype, ref.source
                        entry.write(raw(piece))
        file.flush()
        os.fsync(file.fileno())


def _entry(archive: zipfile.ZipFile, file: IO[bytes], name: str, size: int) -> IO[bytes]:
    """A new entry to write `size` bytes to, which begin aligned: an empty field of that length ends its header."""
    info = zipfile.ZipInfo(f"model/{name}")  # with one date for all: the same tensors make the same file
    info.file_size, info.CRC = size, 0
    large = size >= 1 << 30
    begin = file.tell() + len(info.FileHeader(zip64=large)) + 4
    info.extra = b"FB" + struct.pack("<H", -begin % ALIGNMENT) + bytes(-begin % ALIGNMENT)
    return archive.open(info, "w", force_zip64=large)
