"""A part of a file, as a file of its own."""

from __future__ import annotations

from io import BufferedReader, FileIO, RawIOBase
from pathlib import Path
from typing import Any


def window(path: Path, begin: int, length: int) -> BufferedReader:
    """`length` bytes of the file at `path`, from byte `begin` on, which it should have."""
    return BufferedReader(_Window(path.open("rb", buffering=0), begin, length))


class _Window(RawIOBase):
    """A part of a file, as a file of its own."""

    def __init__(self, file: FileIO, begin: int, length: int) -> None:
        super().__init__()
        self.file, self.begin, self.length = file, begin, length
        self.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        origin = (0, self.tell() if whence == 1 else 0, self.length)[whence]
        if origin + offset < 0:
            raise ValueError(f"there is no byte {origin + offset}")
        return self.file.seek(self.begin + origin + offset) - self.begin

    def tell(self) -> int:
        return self.file.tell() - self.begin

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(min(len(buffer), max(self.length - self.tell(), 0)))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()
