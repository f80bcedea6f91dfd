"""A GGUF file becomes its metadata and a Ref for each tensor, under the names and in the order the file has.

Only the header is read. Plain tensors are views of the mapped file; quantized ones become float32 when read, no more
than the blocks asked for, and those of Q4_0 and Q8_0 know their codes. It knows neither what the metadata means nor
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
from struct import Struct
from struct import error as StructError
from typing import Any

import torch
from torch import Tensor

from lathe.errors import CheckpointError
from lathe.weights.blocks import PACKINGS, Packing
from lathe.weights.coded import Coded
from lathe.weights.safetensors import mapped, view
from lathe.weights.tensors import Box, Ref, possible

VERSIONS = (2, 3)
MAX_HEADER = 128 << 20  # a vocabulary of 300,000 takes 20 MiB; it bounds what a hostile header can make us hold
MAX_DIMS = 4
MAX_DEPTH = 4  # of arrays in arrays; no known file has any
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
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
U32, U64 = Struct("<I"), Struct("<Q")


@dataclass(frozen=True)
class Gguf:
    """What a GGUF file holds. Shapes are in torch's order, the reverse of ggml's; arrays are lists."""

    metadata: dict[str, Any]
    tensors: dict[str, Ref]


@dataclass(frozen=True)
class _Entry:
    """A tensor as the header lists it; `offset` counts from where tensors begin."""

    shape: tuple[int, ...]
    kind: int
    offset: int


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
        header = _Header(data, 8)
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


def _refs(path: Path, size: int, entries: dict[str, _Entry], start: int) -> dict[str, Ref]:
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


def _ref(path: Path, name: str, entry: _Entry, begin: int, whole: Callable[[], Tensor]) -> tuple[Ref, int]:
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

    if packing.name in CODED and len(shape) > 1:
        raw = Ref(blocks, torch.uint8, lambda box: view(whole(), begin, torch.uint8, blocks, box), source)
        kind, codes = CODED[packing.name]
        return Coded(shape, torch.float32, fetch, source, kind=kind, parts=codes(raw)), prod(blocks)
    return Ref(shape, torch.float32, fetch, source), prod(blocks)


def _eights(raw: Ref) -> dict[str, Ref]:
    """Blocks of Q8_0 as int8-32 has them."""
    *lead, count, _ = raw.shape

    def codes(box: Box) -> Tensor:
        each = raw.fetch((*box[:-1], slice(0, count), slice(2, 34)))
        return each.flatten(-2)[..., box[-1]].view(torch.int8)

    numbers = Ref((*lead, count * 32), torch.int8, codes, raw.source)
    return {"codes": numbers, "scales": _scales(raw)}


def _fours(raw: Ref) -> dict[str, Ref]:
    """Blocks of Q4_0 as int4 has them: the halves of its bytes are numbers that lie 16 apart, there neighbours."""
    *lead, count, _ = raw.shape

    def codes(box: Box) -> Tensor:
        pairs = raw.fetch((*box[:-1], slice(0, count), slice(2, 18)))
        each = torch.cat((pairs & 15, pairs >> 4), -1)
        return (each[..., ::2] << 4 | each[..., 1::2]).flatten(-2)[..., box[-1]]

    return {"codes": Ref((*lead, count * 16), torch.uint8, codes, raw.source), "scales": _scales(raw)}


def _scales(raw: Ref) -> Ref:
    def scales(box: Box) -> Tensor:
        return raw.fetch((*box, slice(0, 2))).contiguous().view(torch.float16).squeeze(-1)

    return Ref(raw.shape[:-1], torch.float16, scales, raw.source)


# What transforms.kinds calls the types whose blocks it knows, and its parts.
CODED: dict[str, tuple[str, Callable[[Ref], dict[str, Ref]]]] = {"Q4_0": ("int4", _fours), "Q8_0": ("int8-32", _eights)}


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


class _Header:
    """A place in a header, and what is read there; ValueError or struct.error if it runs past the end."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self.data, self.at, self.end = data, at, len(data)

    def number(self, layout: Struct) -> Any:
        (value,) = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return value

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        data, at, end, length = self.data, self.at, self.end, U64.unpack_from  # a vocabulary's loop: local names count
        strings = []
        for _ in range(count):
            (n,) = length(data, at)
            if n > end - at:
                raise ValueError(f"a text of {n} bytes, longer than the header")
            strings.append(str(data[at + 8 : at + 8 + n], "utf-8"))
            at += 8 + n
        self.at = at
        return strings

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY and depth < MAX_DEPTH:
            kind, count = self.number(U32), self.number(U64)
            return self.array(kind, count, depth + 1)
        if kind in NUMBERS:
            return self.number(Struct(f"<{NUMBERS[kind]}"))
        raise ValueError(f"a value of kind {kind}")

    def array(self, kind: int, count: int, depth: int) -> list:
        if count > self.end - self.at:
            raise ValueError(f"an array of {count} values, longer than the header")
        if kind == STRING:
            return self.strings(count)
        if kind in NUMBERS:
            layout = Struct(f"<{count}{NUMBERS[kind]}")
            values = list(layout.unpack_from(self.data, self.at))
            self.at += layout.size
            return values
        return [self.value(kind, depth) for _ in range(count)]

    def metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self.string()
            if key in metadata:
                raise ValueError(f"the key {key!r:.80} twice")
            metadata[key] = self.value(self.number(U32))
        return metadata

    def entries(self, count: int) -> dict[str, _Entry]:
        entries: dict[str, _Entry] = {}
        for _ in range(count):
            name, dims = self.string(), self.number(U32)
            if name in entries:
                raise ValueError(f"the tensor {name!r:.80} twice")
            if dims > MAX_DIMS:
                raise ValueError(f"the tensor {name!r:.80} with {dims} dimensions")
            shape = tuple(self.number(U64) for _ in range(dims))[::-1]
            entries[name] = _Entry(shape, self.number(U32), self.number(U64))
        return entries


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a whole GGUF file: {why}.",
        fix="Download or copy it again, or check that it is the file you meant.",
    )
