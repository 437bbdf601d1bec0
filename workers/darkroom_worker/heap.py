"""The C library's heap: what is freed there mostly stays with the process.

A page that is new to a process is filled with zeros by the system first. Where every tensor of a
decode lies in new pages, that takes up to a third of the decode's time.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

import psutil

M_TRIM_THRESHOLD: Final = -1
"""From glibc's malloc.h: so much may be free at the heap's end before it is given back."""

M_MMAP_THRESHOLD: Final = -3
"""From glibc's malloc.h: what is at least so large lies outside of the heap."""

LARGE: Final = 32 << 20
"""Bytes. Smaller tensors are reused in the heap, larger ones go back when they are freed."""

KEPT: Final = 256 << 20
"""Bytes that may be free in the heap: the smaller tensors of a decode, which come back at once."""

HUGE_PAGES: Final = {"THP_MEM_ALLOC_ENABLE": "1"}
"""Has PyTorch ask for pages of 2 MiB instead of 4 KiB. It reads this while it is imported."""


def prepare() -> None:
    """Have a process decode fast, and give back what is large. To be called before `import torch`.

    Left alone, glibc doubles its limits with what it sees freed: then memory depends on what was
    decoded before, and small decodes begin with new pages each time. Other C libraries have no such
    heap, or no way to say so.
    """
    for name, value in HUGE_PAGES.items():
        os.environ.setdefault(name, value)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)


def trim() -> None:
    """Give back all that is free, where the C library can."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


class Heap:
    """Has a process hold at most `KEPT` bytes that are free, between one decode and the next.

    Tensors that are aligned leave holes that glibc before 2.38 does not fill again, so that the
    heap would grow with every other size of pictures.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._least = self._resident()

    def settle(self) -> None:
        """Give back what is free if there is much more of everything than there was at least."""
        held = self._resident()
        if held > self._least + KEPT:
            trim()
            self._least = self._resident()
        else:
            self._least = min(self._least, held)

    def _resident(self) -> int:
        resident: int = self._process.memory_info().rss
        return resident
