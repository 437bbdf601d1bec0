"""Something that is to be done now and then while work goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta


class Heartbeat:
    """Does something at most once in an interval, whenever there is progress."""

    def __init__(self, interval: timedelta, action: Callable[[], object]) -> None:
        self._interval = interval.total_seconds()
        self._action = action
        self._last = time.monotonic()

    def beat(self) -> None:
        """Note progress."""
        if time.monotonic() - self._last >= self._interval:
            self._last = time.monotonic()
            self._action()
