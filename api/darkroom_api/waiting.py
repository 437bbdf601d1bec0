"""Waiting for jobs without polling: one subscription for each process wakes those who wait."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from darkroom_infra.records import AsyncRecordsClient, JobRecord, RecordsUnavailableError
from darkroom_infra.telemetry import get_logger

RECONNECT_SECONDS = 0.5
READERS = 16

_log = get_logger("api.waiting")


class Waiters:
    """Those who wait, by job. Lives in one event loop."""

    def __init__(self, records: AsyncRecordsClient) -> None:
        self._records = records
        self.turns = asyncio.Semaphore(READERS)
        """So many of those who were woken read at a time: other calls need Redis too."""
        self._closing = False
        self.lost_at = time.monotonic()
        """When the connection to Redis was last lost: it may have lost its latest writes then."""
        self._events: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    @property
    def closing(self) -> bool:
        """Whether the service is about to stop: nobody is kept waiting any more."""
        return self._closing

    async def listen(self) -> None:
        """Follow the changes for ever, and wake who waits for them.

        After every (re)connection all are woken: changes may have been missed meanwhile.
        """
        while True:
            try:
                async for job_id in self._records.changes():
                    self._wake(job_id)
            except RecordsUnavailableError as error:
                self.lost_at = time.monotonic()
                _log.warning("waiting.disconnected", error=str(error))
            await asyncio.sleep(RECONNECT_SECONDS)

    async def until_finished(
        self, read: Callable[[], Awaitable[JobRecord]], job_id: str, seconds: float
    ) -> JobRecord:
        """Read a job until it has finished or the time is over, and return the last reading."""
        deadline = asyncio.get_running_loop().time() + seconds
        async with self.listening(job_id) as changed:
            while True:
                changed.clear()
                record = await read()
                if record.state.status.finished or self._closing:
                    return record
                try:
                    async with asyncio.timeout_at(deadline):
                        await changed.wait()
                except TimeoutError:
                    return record

    def close(self) -> None:
        """Answer all who wait with what is known now: the service is about to stop."""
        self._closing = True
        self._wake(None)

    @asynccontextmanager
    async def listening(self, job_id: str) -> AsyncIterator[asyncio.Event]:
        """Give an event that is set when a job or batch changes, or the service stops."""
        event = asyncio.Event()
        self._events[job_id].add(event)
        try:
            yield event
        finally:
            self._events[job_id].discard(event)
            if not self._events[job_id]:
                del self._events[job_id]

    def _wake(self, job_id: str | None) -> None:
        waiting = self._events.values() if job_id is None else [self._events.get(job_id, set())]
        for events in waiting:
            for event in events:
                event.set()
