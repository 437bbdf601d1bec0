"""What the living workers say of themselves, for checks that each submission goes through."""

from __future__ import annotations

import time
from collections.abc import Callable

from darkroom_infra.records import AsyncRecordsClient, transitions
from darkroom_infra.records.transitions import Presence

AGE = 2.0
"""Seconds. Workers themselves speak every five."""


class Workers:
    """Reads what workers say, but not anew for each submission."""

    def __init__(
        self, records: AsyncRecordsClient, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._records = records
        self._clock = clock
        self._read: Presence | None = None
        self._read_at = 0.0

    async def presence(self) -> Presence:
        """Tell what they said, as of `AGE` seconds ago at most."""
        if self._read is None or self._clock() - self._read_at > AGE:
            return await self.presence_now()
        return self._read

    async def presence_now(self) -> Presence:
        """Ask what they say now."""
        at = self._clock()
        self._read = await self._records.run(transitions.loaded())
        self._read_at = at
        return self._read
