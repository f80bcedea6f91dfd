"""Compressed files become their bytes, streamed or as a copy in the cache; a damaged one is an error, not a short file.

Knows .gz, .bz2, .xz and .zst, and what is beneath them only by its suffix.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast
from zlib import error as ZlibError

from lathe.errors import DataError, MissingError

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")


def suffix(path: Path) -> str:
    """What says how a file is read: `.jsonl` of `a.jsonl.gz`, in small letters."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return inner.suffix.lower()


@contextmanager
def unpacked(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked while they are read. Raises DataError where it is damaged, MissingError."""
    try:
        with _opened(path) as file:
            yield file
    except FileNotFoundError:
        raise MissingError(f"There is no file {path}.") from None
    except (gzip.BadGzipFile, lzma.LZMAError, ZlibError, EOFError) as error:
        raise DataError(f"{path} cannot be unpacked: {error}.", fix="Fetch it again.") from None
    except OSError as error:
        if path.suffix.lower() != ".bz2" or error.errno is not None:
            raise
        raise DataError(f"{path} cannot be unpacked: {error}.", fix="Fetch it again.") from None


def _opened(path: Path) -> BinaryIO:
    match path.suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.open(path))
        case ".bz2":
            return cast(BinaryIO, bz2.open(path))
        case ".xz":
            return cast(BinaryIO, lzma.open(path))
        case ".zst":
            return _zstandard(path)
    return path.open("rb")


def _zstandard(path: Path) -> BinaryIO:
    import io

    try:
        import zstandard
    except ImportError:
        found = f"{path} is compressed with Zstandard, and the library that reads it is not installed."
        raise MissingError(found, fix="pip install 'lathe-llm[data]'.") from None

    class Frames(io.RawIOBase):
        """What is in the frames of a file. The library's own reader takes a file that is cut off for a whole one."""

        def __init__(self) -> None:
            self.file, self.library = path.open("rb"), zstandard.ZstdDecompressor()
            self.frame: Any = None
            self.packed = self.ready = b""

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            while not self.ready:
                if not (block := self.packed or self.file.read(1 << 17)):
                    if self.frame:
                        raise EOFError("it ends in the middle")
                    return 0
                self.frame = self.frame or self.library.decompressobj()
                try:
                    self.ready = self.frame.decompress(block)
                except zstandard.ZstdError as error:
                    raise EOFError(str(error)) from None
                self.packed = self.frame.unused_data
                self.frame = None if self.frame.eof else self.frame
            size = min(len(buffer), len(self.ready))
            buffer[:size], self.ready = self.ready[:size], self.ready[size:]
            return size

        def close(self) -> None:
            self.file.close()
            super().close()

    return io.BufferedReader(Frames(), 1 << 20)


def unpacked_copy(path: Path) -> Path:
    """The file unpacked, in the cache; made if it is not there or the file has changed since."""
    told = path.stat()
    key = hashlib.blake2b(f"{path.resolve()} {told.st_size} {told.st_mtime_ns}".encode(), digest_size=12).hexdigest()
    copy = cache() / "unpacked" / f"{key}{suffix(path)}"
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with unpacked(path) as source, tempfile.NamedTemporaryFile(dir=copy.parent, delete=False) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        Path(target.name).replace(copy)
    return copy


def cache() -> Path:
    """Where what is made from data is kept, and can be deleted: $LATHE_CACHE, or ~/.cache/lathe."""
    return Path(os.environ.get("LATHE_CACHE") or Path.home() / ".cache" / "lathe")
