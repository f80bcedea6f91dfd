"""A GGUF file becomes its metadata and a Ref for each tensor, under the names and in the order the file has.

Only the header is read. Plain tensors are views of the mapped file; quantized ones become float32 when read, no more
than the blocks asked for, and most of them know their codes. It knows neither what the metadata means nor
which model the names belong to.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from pathlib import Path
from struct import error as StructError
from typing import Any

import torch
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.weights.blocks import PACKINGS, Packing
from lathe.weights.coded import Coded
from lathe.weights.gguf.codes import WAYS
from lathe.weights.gguf.header import U32, U64, Entry, Header
from lathe.weights.safetensors import mapped, view
from lathe.weights.tensors import Box, Ref, possible

VERSIONS = (2, 3)
MAX_HEADER = 128 << 20  # a vocabulary of 300,000 takes 20 MiB; it bounds what a hostile header can make us hold
ALIGNMENT = 32
CHUNK = 1 << 20  # values dequantized at once: enough to keep the cores busy, little enough to stay small

PLAIN = {
    0: torch.float32,
    1: torch.float16,
    24: torch.int8,
    25: torch.int16,
    26: torch.int32,
    27: torch.int64,
    28: torch.float64,
    30: torch.bfloat16,
}
UNREAD = {  # types named only to be refused by name
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    40: "NVFP4",
    41: "Q1_0",
}


@dataclass(frozen=True)
class Gguf:
    """What a GGUF file holds. Shapes are in torch's order, the reverse of ggml's; arrays are lists."""

    metadata: dict[str, Any]
    tensors: dict[str, Ref]


def open(path: Path) -> Gguf:
    """The metadata and tensors of a file, little-endian, version 2 or 3. Reads the header only.

    Raises:
        CheckpointError: the file is cut short or damaged, tensors overlap or lie outside it, or one is of a type that
            is not read.
    """
    size = path.stat().st_size
    if size < 24:
        raise _damaged(path, f"it has only {size} bytes")
    with path.open("rb") as file, mmap.mmap(file.fileno(), min(size, MAX_HEADER), access=mmap.ACCESS_READ) as data:
        magic, version = data[:4], U32.unpack_from(data, 4)[0]
        if magic != b"GGUF":
            raise _damaged(path, f"it begins with {magic!r}")
        if version not in VERSIONS:
            what = "big-endian files are" if int.from_bytes(data[4:8], "big") in VERSIONS else f"version {version} is"
            raise CheckpointError(f"{path} cannot be read: {what} not supported; versions 2 and 3, little-endian, are.")
        header = Header(data, 8)
        try:
            count, metadata_count = header.number(U64), header.number(U64)
            metadata = header.metadata(metadata_count)
            entries = header.entries(count)
        except (ValueError, StructError) as error:
            raise _damaged(path, f"its header makes no sense near byte {header.at} ({error})") from error
    return Gguf(metadata, _refs(path, size, entries, _start(path, header.at, metadata)))


def _start(path: Path, header: int, metadata: dict[str, Any]) -> int:
    """The byte at which tensors begin."""
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise _damaged(path, "its alignment is not a power of two")
    return -(-header // alignment) * alignment


def _refs(path: Path, size: int, entries: dict[str, Entry], start: int) -> dict[str, Ref]:
    whole = cache(partial(mapped, path))
    refs, spans = {}, []
    for name, entry in entries.items():
        refs[name], nbytes = _ref(path, name, entry, start + entry.offset, whole)
        spans.append((start + entry.offset, start + entry.offset + nbytes, name))
    last = start
    for begin, end, name in sorted(spans):
        if begin < last:
            raise _damaged(path, f'tensor "{name}" begins at byte {begin}, inside the one before it')
        last = end
        if end > size:
            raise CheckpointError(
                f'{path} is cut short: tensor "{name}" ends at byte {end}, the file at {size}.',
                fix="Download or copy it again.",
            )
    return refs


def _ref(path: Path, name: str, entry: Entry, begin: int, whole: Callable[[], Tensor]) -> tuple[Ref, int]:
    """A tensor that begins at byte `begin`, and how many bytes it has."""
    shape, source = entry.shape, f'"{name}" in {path}'
    if not possible(shape):
        raise _damaged(path, f'tensor "{name}" has no possible shape')
    if dtype := PLAIN.get(entry.kind):
        ref = Ref(shape, dtype, lambda box: view(whole(), begin, dtype, shape, box), source)
        return ref, ref.nbytes
    packing = PACKINGS.get(entry.kind)
    if packing is None:
        kind = UNREAD.get(entry.kind, f"of type number {entry.kind}")
        raise CheckpointError(
            f'{path} cannot be read: tensor "{name}" is {kind}.',
            f"Types that can: F32, F16, BF16, {', '.join(packing.name for packing in PACKINGS.values())}.",
        )
    if not shape or shape[-1] % packing.values:
        raise _damaged(path, f'rows of tensor "{name}" are not whole blocks of {packing.values} values')
    blocks = (*shape[:-1], shape[-1] // packing.values, packing.nbytes)

    def fetch(box: Box) -> Tensor:
        return _expanded(view(whole(), begin, torch.uint8, blocks), packing, box)

    if packing.name in WAYS and len(shape) > 1:
        raw, way = (
            Ref(blocks, torch.uint8, lambda box: view(whole(), begin, torch.uint8, blocks, box), source),
            WAYS[packing.name],
        )
        return Coded(shape, torch.float32, fetch, source, kind=way.kind, parts=way.refs(raw), stored=raw), prod(blocks)
    return Ref(shape, torch.float32, fetch, source), prod(blocks)


def _expanded(raw: Tensor, packing: Packing, box: Box) -> Tensor:
    """The values in a box of a quantized tensor: of each row the blocks it touches, what it did not ask for cut off.

    Args:
        raw: the tensor's bytes, ... x blocks x `packing.nbytes`.
    """
    row = box[-1]
    low, high = row.start // packing.values, -(-row.stop // packing.values)
    part = raw[(*box[:-1], slice(low, high))]
    out = torch.empty(part.shape[:-1].numel(), packing.values)
    count = CHUNK // packing.values
    for blocks, values in zip(part.flatten(0, -2).split(count), out.split(count), strict=True):
        values.copy_(packing.expand(blocks))
    edge = low * packing.values
    return out.view(*part.shape[:-2], (high - low) * packing.values)[..., row.start - edge : row.stop - edge]


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a whole GGUF file: {why}.",
        fix="Download or copy it again, or check that it is the file you meant.",
    )
