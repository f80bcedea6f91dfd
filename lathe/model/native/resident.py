"""What was read of a mapped file, to be made into something else, goes back to the system: it would stay in this
process's memory beside what was made of it. Only on Linux; elsewhere the system finds out by itself.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

LIMIT = 1 << 24  # bytes that are read before any are given back
DONTNEED = 4  # MADV_DONTNEED of madvise(2)
PAGES = Path("/proc/self/pagemap")  # eight bytes for each page: https://docs.kernel.org/admin-guide/mm/pagemap.html
THERE, FILED = 0b11 << 62, 1 << 61  # bits of a page that is in memory or swapped out; that a file stands behind


class Passing:
    """Tensors pass through, each in use until the next is asked for. Every `LIMIT` bytes, and with `release`, the pages
    of those that are views of a file are given back, and are read anew by whoever touches them again. Where anything
    was written into a tensor's pages, which exists in this process alone, all of them stay.
    """

    def __init__(self) -> None:
        self.spans: list[tuple[int, int]] = []
        self.read = 0

    def through(self, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
        for tensor in tensors:
            begin = tensor.data_ptr()
            yield tensor
            self.done(begin, tensor.nbytes)

    def done(self, begin: int, size: int) -> None:
        """So many bytes from an address on are no longer in use."""
        self.spans.append((begin, begin + size))
        self.read += size
        if self.read >= LIMIT:
            self.release()

    def release(self) -> None:
        page = mmap.PAGESIZE
        for begin, end in self.spans:
            first, last = -(-begin // page), end // page
            if first < last and _filed(first, last):
                place, size = ctypes.c_void_p(first * page), ctypes.c_size_t((last - first) * page)
                ctypes.CDLL(None).madvise(place, size, DONTNEED)
        self.spans, self.read = [], 0


def trim() -> None:
    """Freed memory, which the C library keeps for what comes, goes back to the system, where that library is glibc."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _filed(first: int, last: int) -> bool:
    """Whether a file stands behind all pages of these numbers that this process has."""
    if sys.platform != "linux" or not PAGES.exists():
        return False
    with PAGES.open("rb", buffering=0) as told:
        told.seek(first * 8)
        pages = array("Q", told.read((last - first) * 8))
    return len(pages) == last - first and all(page & FILED or not page & THERE for page in pages)
