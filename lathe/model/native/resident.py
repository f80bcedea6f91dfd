"""What was read of a mapped file, to be made into something else, goes back to the system: it would stay in this
process's memory beside what was made of it. Only on Linux; elsewhere the system finds out by itself.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

LIMIT = 1 << 26  # bytes that are read before any are given back
DONTNEED = 4  # MADV_DONTNEED of madvise(2)


class Passing:
    """Tensors pass through, each in use until the next is asked for. Every `LIMIT` bytes, and with `release`, the pages
    of those that are views of a file are given back, and are read anew by whoever touches them again. Where anything
    was written into a mapping, which exists in this process alone, all of it stays.
    """

    def __init__(self) -> None:
        self.spans: list[tuple[int, int]] = []
        self.read = 0

    def through(self, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
        for tensor in tensors:
            begin = tensor.data_ptr()
            yield tensor
            self.spans.append((begin, begin + tensor.nbytes))
            self.read += tensor.nbytes
            if self.read >= LIMIT:
                self.release()

    def release(self) -> None:
        page, maps = mmap.PAGESIZE, clean() if self.spans else []
        for begin, end in self.spans:
            first, last = -(-begin // page) * page, end // page * page
            if first < last and any(low <= first and last <= high for low, high in maps):
                ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), DONTNEED)
        self.spans, self.read = [], 0


def trim() -> None:
    """Freed memory, which the C library keeps for what comes, goes back to the system, where that library is glibc."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def clean() -> list[tuple[int, int]]:
    """Where files are mapped of which this process has no pages of its own: it wrote nothing there."""
    told = Path("/proc/self/smaps")
    if sys.platform != "linux" or not told.exists():
        return []
    found: list[tuple[int, int]] = []
    for line in told.read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # address range, permissions, offset, device, inode, path
            low, _, high = words[0].partition("-")
            area, inode = (int(low, 16), int(high, 16)), int(words[4])
        elif words[0] == "Anonymous:" and words[1] == "0" and inode:
            found.append(area)
    return found
