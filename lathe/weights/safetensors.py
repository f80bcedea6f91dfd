"""A safetensors file becomes Refs into its mapped bytes, and Refs become a safetensors file, one tensor at a time.

The format: eight bytes of header length (little endian), a JSON header, then the tensors' bytes.
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.weights.tensors import Box, Ref, possible

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100 << 20  # the format's own limit: a longer header is a damaged or hostile file


NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)  # Python 3.13 has the name


def mapped(path: Path) -> Tensor:
    """The bytes of a file that is not empty, mapped privately: reading pages them in, writing never reaches the file.

    torch.from_file would have the kernel promise memory for all of it, and fails for a file larger than the machine's.
    """
    with path.open("rb") as file:
        if sys.platform == "win32":
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        else:
            private, writable = mmap.MAP_PRIVATE | NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
            data = mmap.mmap(file.fileno(), 0, flags=private, prot=writable)
    return torch.frombuffer(data, dtype=torch.uint8)


def view(data: Tensor, start: int, dtype: torch.dtype, shape: tuple[int, ...], box: Box = ()) -> Tensor:
    """What lies in `box` of the tensor that begins at byte `start` of `data`.

    A view of `data`, or where the tensor is not aligned to its elements there, a copy of no more than the box.
    """
    size = dtype.itemsize
    raw = data[start : start + prod(shape) * size].view(*shape, size)[box]
    if raw.data_ptr() % size or raw.storage_offset() % size:
        raw = raw.clone(memory_format=torch.contiguous_format)
    return raw.view(dtype).squeeze(-1)


def open(path: Path) -> dict[str, Ref]:
    """The tensors of a file by name. Reads the header only.

    Raises:
        CheckpointError: the file is cut short, its header is not valid, or its tensors are not laid end to end in it.
    """
    header, start = read_header(path)
    size = path.stat().st_size
    whole = cache(partial(mapped, path))  # at the first read: opening a hundred shards to list their names maps nothing
    refs, spans = {}, []
    for name, entry in header.items():
        refs[name], begin = _ref(path, name, entry, start, whole)
        spans.append((begin, begin + refs[name].nbytes, name))
    last = start
    for begin, end, name in sorted(spans):
        if begin != last:
            raise _damaged(path, f'tensor "{name}" begins at byte {begin}, and the one before it ends at {last}')
        last = end
    if last > size:
        raise CheckpointError(
            f"{path} is cut short: its tensors end at byte {last}, the file at {size}.",
            fix="Download or copy it again.",
        )
    if last < size:
        raise _damaged(path, f"its tensors end at byte {last}, the file at {size}")
    return refs


def _ref(path: Path, name: str, entry: Any, start: int, whole: Callable[[], Tensor]) -> tuple[Ref, int]:
    """A tensor as the header describes it, and the byte of the file at which it begins."""
    match entry:
        case {"dtype": str(kind), "shape": list(sizes), "data_offsets": [int(low), int(high)]} if possible(sizes):
            if kind not in DTYPES:
                raise CheckpointError(f'{path} cannot be read: tensor "{name}" is of the unknown type {kind!r:.40}.')
            dtype, shape, begin = DTYPES[kind], tuple(sizes), start + low
            ref = Ref(shape, dtype, lambda box: view(whole(), begin, dtype, shape, box), f'"{name}" in {path}')
            if not 0 <= low <= high < 1 << 62 or high - low != ref.nbytes:
                raise _damaged(path, f'tensor "{name}" of shape {list(shape)} is given bytes {low} to {high}')
            return ref, begin
    raise _damaged(path, f'tensor "{name}" has no proper dtype, shape and data_offsets')


def read_header(path: Path) -> tuple[dict[str, dict], int]:
    """The header's entries without its metadata, and the byte at which tensors begin."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise _damaged(path, f"its header claims {length} bytes and the file has {size}")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise _damaged(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    header.pop("__metadata__", None)
    return header, 8 + length


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, on whatever device."""
    tensor = tensor.detach().cpu()
    # flatten() leaves a lone element the stride it had, which `view` does not forgive
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().data


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a whole safetensors file: {why}.",
        fix="Download or copy it again, or check that it is the file you meant.",
    )


def write(path: Path, refs: Mapping[str, Ref]) -> None:
    """Write tensors to a new file and sync it, holding a piece of one in memory at a time."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    # Widest dtype first, as the reference writer does: every tensor is then aligned to its element.
    names = sorted(refs, key=lambda name: (-refs[name].dtype.itemsize, name))
    end = 0
    for name in names:
        ref = refs[name]
        header[name] = {"dtype": NAMES[ref.dtype], "shape": list(ref.shape), "data_offsets": [end, end + ref.nbytes]}
        end += ref.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            for piece in refs[name].pieces():
                assert piece.dtype == refs[name].dtype, refs[name].source
                file.write(raw(piece))
        file.flush()
        os.fsync(file.fileno())
