"""Metadata and Refs become a GGUF file, version 3, little-endian: the header first, then the tensors, piece by piece.

What type each tensor is stored in is the caller's choice; what the names and keys mean is not known here.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from struct import pack
from typing import Any

import torch
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.weights.blocks import PACKINGS
from lathe.weights.gguf.header import ARRAY, NUMBERS, STRING
from lathe.weights.gguf.reading import ALIGNMENT
from lathe.weights.safetensors import raw
from lathe.weights.tensors import Ref

VERSION = 3
CHUNK = 1 << 18  # values converted at once: whole blocks of any type, and few enough for a core's cache
PLAIN = {"F32": (0, torch.float32), "F16": (1, torch.float16), "BF16": (30, torch.bfloat16)}
PACKED = {packing.name: (kind, packing) for kind, packing in PACKINGS.items()}
UINT32, INT32, FLOAT32, BOOL, UINT64, INT64 = 4, 5, 6, 7, 10, 11


def write(path: Path, metadata: Mapping[str, Any], refs: Mapping[str, Ref], packing: Callable[[str, Ref], str]) -> None:
    """Write a new file and sync it, holding no more than a piece of a tensor in memory.

    metadata: texts, numbers, flags and lists of one kind of these; whole numbers become 32-bit ones if they fit, real
    numbers float32. packing: the type of each tensor by ggml's name ("F32", "BF16", "Q8_0", "Q4_K", ...).

    Raises:
        CheckpointError: a tensor's rows are no whole blocks of its type, or it holds something its type cannot.
    """
    kinds = {name: packing(name, ref) for name, ref in refs.items()}
    alignment = metadata.get("general.alignment", ALIGNMENT)
    head = [b"GGUF", pack("<IQQ", VERSION, len(refs), len(metadata))]
    head += [_text(key) + _tagged(value) for key, value in metadata.items()]
    end = 0
    for name, ref in refs.items():
        number, nbytes = _stored(name, ref, kinds[name])
        shape = ref.shape[::-1]
        head.append(_text(name) + pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, end))
        end += nbytes + -nbytes % alignment
    with path.open("wb") as file:
        file.writelines(head)
        file.write(bytes(-file.tell() % alignment))
        for name, ref in refs.items():
            for piece in ref.pieces():
                file.writelines(_bytes(name, piece.detach().cpu(), kinds[name]))
            file.write(bytes(-file.tell() % alignment))
        file.flush()
        os.fsync(file.fileno())


def _text(value: str) -> bytes:
    data = value.encode()
    return pack("<Q", len(data)) + data


def _tagged(value: Any) -> bytes:
    """A metadata value behind the number of its kind."""
    if isinstance(value, (list, tuple)):
        kind = _kind_of_all(value)
        values = b"".join(map(_text, value)) if kind == STRING else pack(f"<{len(value)}{NUMBERS[kind]}", *value)
        return pack("<IIQ", ARRAY, kind, len(value)) + values
    kind = _kind(value)
    return pack("<I", kind) + (_text(value) if kind == STRING else pack(f"<{NUMBERS[kind]}", value))


def _kind(value: Any) -> int:
    if isinstance(value, str):
        return STRING
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, float):
        return FLOAT32
    assert isinstance(value, int), f"GGUF metadata holds no {type(value).__name__}"
    if value < 0:
        return INT32 if value >= -(1 << 31) else INT64
    return UINT32 if value < 1 << 32 else UINT64


def _kind_of_all(values: list | tuple) -> int:
    """The kind of an array: llama.cpp reads whole numbers in arrays as int32."""
    kinds = {_kind(value) for value in values} or {INT32}
    if kinds <= {UINT32, INT32}:
        return INT32 if max(values, default=0) < 1 << 31 else UINT32
    if kinds == {UINT32, FLOAT32}:
        return FLOAT32
    assert len(kinds) == 1, "a GGUF array is of one kind"
    return kinds.pop()


def _stored(name: str, ref: Ref, kind: str) -> tuple[int, int]:
    """ggml's number for a type, and how many bytes the tensor takes in it."""
    if kind in PLAIN:
        number, dtype = PLAIN[kind]
        return number, prod(ref.shape) * dtype.itemsize
    number, packing = PACKED[kind]
    assert packing.pack, f"no tensor is written as {kind}"
    if not ref.shape or ref.shape[-1] % packing.values:
        raise CheckpointError(
            f"{name} ({ref.source}) has shape {list(ref.shape)}.",
            f"Its rows should be whole blocks of {packing.values} values, to be stored as {kind}.",
        )
    return number, prod(ref.shape) // packing.values * packing.nbytes


def _bytes(name: str, values: Tensor, kind: str) -> Iterator[memoryview]:
    """Some rows of a tensor as they are stored."""
    for part in values.flatten().split(CHUNK):
        if kind in PLAIN:
            stored = part.to(PLAIN[kind][1])
            fits = stored.isfinite().all() or not part.float().isfinite().all()
        else:
            packing = PACKED[kind][1]
            assert packing.pack
            stored = packing.pack(part.float().view(-1, packing.values))
            fits = part.float().isfinite().all()
        if not fits:
            raise CheckpointError(
                f"{name} holds {part.abs().max().item():.6g}, which {kind} cannot hold.",
                fix="Choose a wider type, as BF16 or F32.",
            )
        yield raw(stored)
