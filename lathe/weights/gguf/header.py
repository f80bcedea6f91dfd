"""The bytes of a GGUF file's header become its metadata and a list of tensors; knows no tensor's bytes.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from struct import Struct
from typing import Any

MAX_DIMS = 4
MAX_DEPTH = 4  # of arrays in arrays; no known file has any
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
U32, U64 = Struct("<I"), Struct("<Q")


@dataclass(frozen=True)
class Entry:
    """A tensor as the header lists it; `offset` counts from where tensors begin."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class Header:
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

    def entries(self, count: int) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for _ in range(count):
            name, dims = self.string(), self.number(U32)
            if name in entries:
                raise ValueError(f"the tensor {name!r:.80} twice")
            if dims > MAX_DIMS:
                raise ValueError(f"the tensor {name!r:.80} with {dims} dimensions")
            shape = tuple(self.number(U64) for _ in range(dims))[::-1]
            entries[name] = Entry(shape, self.number(U32), self.number(U64))
        return entries
