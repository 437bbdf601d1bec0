"""A worker's heap: small tensors are reused, large ones come in huge pages, little is kept."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc's heap is told anything"
)

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

PRELUDE = """
import resource
from darkroom_worker import heap
heap.prepare()
import psutil
import torch

def tensors(count, mebibytes):
    return [torch.ones(mebibytes << 18) for _ in range(count)]

def new_pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return psutil.Process().memory_info().rss

"""


def run(program: str) -> list[int]:
    """Run a program in a process of its own, and give the numbers that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program], check=True, capture_output=True
    )
    return [int(number) for number in done.stdout.split()]


def test_small_tensors_are_reused() -> None:
    """Of the 153,600 pages of tensors that are made again and again, few are new."""
    program = """
tensors(1, 20)
before = new_pages()
for _ in range(10):
    tensors(3, 20)
print(new_pages() - before)
"""
    (pages,) = run(program)
    assert pages < 153_600 / 4


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="no huge pages here"
)
def test_large_tensors_come_in_huge_pages() -> None:
    """A tensor of 64 MiB takes some pages of 2 MiB, not 16,384 of 4 KiB."""
    program = """
tensors(1, 64)
before = new_pages()
tensors(1, 64)
print(new_pages() - before)
"""
    (pages,) = run(program)
    assert pages < 2000


def test_what_is_free_goes_back_once_it_is_much() -> None:
    """Holes among what is in use keep no more memory than what may be kept."""
    program = """
kept = heap.Heap()
before = resident()
many = tensors(60, 10)
held = many[::6]
del many
print(resident() - before)
kept.settle()
print(resident() - before)
print(heap.KEPT)
"""
    at_first, after, limit = run(program)
    assert at_first > 500 << 20
    assert after < (100 << 20) + limit / 4
