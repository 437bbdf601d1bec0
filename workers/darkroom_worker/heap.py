"""The C library's heap: what is freed there mostly stays with the process."""

from __future__ import annotations

import ctypes
from typing import Final

M_MMAP_THRESHOLD: Final = -3
"""From glibc's malloc.h: what is at least so large lies outside of the heap."""

LARGE: Final = 16 << 20
"""Bytes. Smaller tensors are reused in the heap, which is faster than pages that are always new."""


def give_back_large() -> None:
    """Have every tensor of `LARGE` bytes or more go back to the system when it is freed.

    Left alone, glibc doubles that limit with what it sees freed, up to 32 MiB, and its heap then
    holds half as much again as the decode needs. Other C libraries have no such heap, or no way to
    say so.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)


def trim() -> None:
    """Give back all that is free, where the C library can."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
