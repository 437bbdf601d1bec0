"""The watchdog: a decode that hangs cannot be stopped in a thread, so its process is ended."""

from __future__ import annotations

import os
import threading
from datetime import timedelta
from typing import Final

from darkroom_infra.telemetry import get_logger

from .attempts import Developer
from .engine import Engine

INTERVAL: Final = timedelta(seconds=0.5)
EXIT_STATUS: Final = 70
"""EX_SOFTWARE: a supervisor starts the worker again."""

_log = get_logger("worker.watchdog")


def watch(engine: Engine, developer: Developer, deadline: timedelta, stop: threading.Event) -> None:
    """End the process when one batch has kept the device for too long, or stands still.

    The jobs that only waited are handed back first, without counting; the lease of those that hang
    ends at once, so that the keeper gives them to another worker or gives them up.
    """
    while not stop.wait(INTERVAL.total_seconds()):
        reason = engine.overdue(deadline.total_seconds())
        if reason is not None:
            _log.error("watchdog.ends_process", reason=reason)
            developer.hand_back(hanging=True)
            os._exit(EXIT_STATUS)
