"""What a device is busy with in a decode: its kernels, by the time that they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity
from torch.profiler import profile as recorded

from .accelerator import Accelerator

SHOWN = 8
"""So many kernels are listed, the others together."""

NAME_CHARACTERS = 60


def profile(call: Callable[[], object], accelerator: Accelerator) -> dict[str, Any]:
    """Run a call, and list the kernels of the device, or the operations of a CPU.

    Returns:
        The busy milliseconds, and the largest parts of them: name, milliseconds, how often. None
        where the card's counters may not be read.
    """
    activity = ProfilerActivity.CUDA if accelerator.is_cuda else ProfilerActivity.CPU
    call()
    accelerator.synchronize()
    with recorded(activities=[activity]) as profiled:
        call()
        accelerator.synchronize()
    parts = sorted(
        (
            (
                event.self_device_time_total if accelerator.is_cuda else event.self_cpu_time_total,
                event.count,
                event.key,
            )
            for event in profiled.key_averages()
        ),
        reverse=True,
    )
    shown, others = parts[:SHOWN], parts[SHOWN:]
    if others:
        shown.append((sum(part[0] for part in others), sum(part[1] for part in others), "others"))
    return {
        "busy_milliseconds": round(sum(part[0] for part in parts) / 1000, 3),
        "parts": [
            {"name": key[:NAME_CHARACTERS], "milliseconds": round(each / 1000, 3), "count": count}
            for each, count, key in shown
        ],
    }
