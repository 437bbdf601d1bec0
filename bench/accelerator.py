"""A device under measurement: how long it computes, what it holds, and what it can do at most."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

MATRIX = 8192
"""The side of the matrices whose product shows what a GPU computes at most."""

COPIED = 1 << 30
"""How many bytes are copied to see what its memory gives."""

REPEATS = 10


@dataclass(frozen=True)
class Timed:
    """One call: until the device was done, and until the host was, in milliseconds."""

    device: float
    host: float


@dataclass(frozen=True)
class Accelerator:
    """A GPU of CUDA, or the CPU to see that everything runs."""

    device: torch.device

    @property
    def is_cuda(self) -> bool:
        """Whether there are CUDA's events and counts of memory."""
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait until everything is computed."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def time(self, call: Callable[[], object]) -> Timed:
        """Take the time of one call, begun when the device is idle."""
        self.synchronize()
        if not self.is_cuda:
            began = time.perf_counter()
            call()
            passed = 1000 * (time.perf_counter() - began)
            return Timed(passed, passed)
        with torch.cuda.device(self.device):
            start, end = _event(), _event()
            began = time.perf_counter()
            start.record()
            call()
            end.record()
            host = 1000 * (time.perf_counter() - began)
            end.synchronize()
        return Timed(start.elapsed_time(end), host)

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """Count the most bytes of tensors that a call had beyond those that were there before."""
        if not self.is_cuda:
            return None
        self.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.device) - before

    def rates(self, dtypes: list[torch.dtype], *, quick: bool) -> dict[str, Any]:
        """Measure products of matrices in TFLOP/s, in each dtype, and copies in TB/s."""
        side, copied = (256, 1 << 20) if quick else (MATRIX, COPIED)
        found: dict[str, Any] = {}
        for dtype in dtypes:
            matrix = torch.randn(side, side, device=self.device).to(dtype)
            multiply = partial(torch.mm, matrix, matrix, out=torch.empty_like(matrix))
            found[name(dtype)] = 2e-9 * side**3 / self._least(multiply)
        source = torch.zeros(copied, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        found["copy"] = 2e-9 * copied / self._least(lambda: target.copy_(source))
        return found

    def _least(self, call: Callable[[], object]) -> float:
        """Take the least milliseconds of some calls."""
        call()
        return min(self.time(call).device for _ in range(REPEATS))

    def describe(self) -> dict[str, Any]:
        """Name the device, and what drives it."""
        if not self.is_cuda:
            return {"name": "CPU"}
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def name(dtype: torch.dtype) -> str:
    """Name a dtype as the settings do."""
    return str(dtype).removeprefix("torch.")
