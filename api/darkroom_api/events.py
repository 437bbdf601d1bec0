"""Changes as Server-Sent Events: what happened since a listener's last event, and what happens.

A listener is woken by `Waiters`, and reads the log of changes from where it is. So a slow one
misses nothing and holds nobody up, and one that comes back, here or to another process, goes on
where it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, TypeVar

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.responses import StreamingResponse
from starlette.types import Send

from darkroom_infra.presenting import present, present_batch
from darkroom_infra.records import (
    BATCH_COMPLETED,
    AsyncRecordsClient,
    BatchRecord,
    JobRecord,
    RecordsUnavailableError,
    State,
    transitions,
)
from darkroom_infra.records.transitions import Call, Change
from darkroom_infra.store import ObjectStore
from darkroom_wire.jobs import BatchEvent, JobEvent
from darkroom_wire.problems import FieldError

from .errors import MalformedRequestError
from .waiting import Waiters

T = TypeVar("T")

HEARTBEAT_SECONDS: Final = 15.0
RETRY_MS: Final = 2000
AWAY_SECONDS: Final = 1.0
"""How soon Redis is asked again where it did not answer."""

SNAPSHOT_SECONDS: Final = 0.25
"""How long a batch's listener is left alone after each event."""

PROGRESS: Final = "job.progress"
BATCH_PROGRESS: Final = "batch.progress"
MEDIA_TYPE: Final = "text/event-stream"
MAX_EVENT_ID: Final = 2**53


class EventStream(StreamingResponse):
    """Events as they come. What makes them is closed as soon as the listener has gone."""

    media_type = MEDIA_TYPE

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        # Proxies are to pass each event on, and to keep none.
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._events = events

    async def stream_response(self, send: Send) -> None:
        """Send the events, and close their source whatever happens."""
        async with aclosing(self._events):
            await super().stream_response(send)


def last_event_id(header: str | None, query: str | None) -> int:
    """Read the last event that a listener has: 0 for none. The header is the newer one.

    Raises:
        MalformedRequestError: it is not an id that was ever given.
    """
    given = header if header is not None else query
    if not given:
        return 0
    if not (given.isascii() and given.isdigit() and len(given) < 17 and int(given) < MAX_EVENT_ID):
        raise MalformedRequestError.of(
            FieldError(
                field="Last-Event-ID" if header is not None else "last_event_id",
                message=f"the id of an event was expected, a number, not {given[:60]!r}",
            )
        )
    return int(given)


@dataclass(frozen=True)
class Listening:
    """What the listeners of one process share."""

    records: AsyncRecordsClient
    waiters: Waiters
    store: ObjectStore
    heartbeat: float = HEARTBEAT_SECONDS

    async def job_events(self, job_id: str, known: int) -> AsyncGenerator[bytes]:
        """Yield a job's changes after number `known`, and its progress, until it has ended."""
        shown = _Shown(self.store, known)
        yield format_sse_event(retry=RETRY_MS)
        async with self.waiters.listening(job_id) as changed:
            while not self.waiters.closing:
                changed.clear()
                answered = False
                with suppress(RecordsUnavailableError):
                    changes, record = await self._read(transitions.changes(job_id, shown.known))
                    if record is None and await self.records.epoch():
                        return  # forgotten; without an epoch it may yet be rebuilt
                    answered = record is not None
                if answered and record is not None:
                    for told in shown.tell(record, changes):
                        yield told
                    if record.state.status.finished:
                        return
                if not await self._rest(changed, answered=answered):
                    yield KEEPALIVE_COMMENT

    async def batch_events(self, batch_id: str) -> AsyncGenerator[bytes]:
        """Yield how far a batch is, at most a few times a second, until all its jobs have ended.

        The number of an event is that of the jobs that have ended.
        """
        yield format_sse_event(retry=RETRY_MS)
        last: BatchRecord | None = None
        async with self.waiters.listening(batch_id) as changed:
            while not self.waiters.closing:
                changed.clear()
                answered = False
                with suppress(RecordsUnavailableError):
                    batch = await self._read(transitions.read_batch(batch_id))
                    if batch is None and await self.records.epoch():
                        return
                    answered = batch is not None
                if answered and batch is not None:
                    if batch.erased:
                        return
                    if batch.finished_at is not None:
                        yield _batch_event(batch, BATCH_COMPLETED, batch.finished_at)
                        return
                    # Complete but for its end: the number belongs to the event that says so.
                    if batch.finished < batch.total and (last is None or _moved(last, batch)):
                        yield _batch_event(batch, BATCH_PROGRESS, datetime.now(UTC))
                        last = batch
                        await asyncio.sleep(SNAPSHOT_SECONDS)
                if not await self._rest(changed, answered=answered):
                    yield KEEPALIVE_COMMENT

    async def _read(self, call: Call[T]) -> T:
        async with self.waiters.turns:
            return await self.records.run(call)

    async def _rest(self, changed: asyncio.Event, *, answered: bool) -> bool:
        """Wait for a change; False after a heartbeat without one.

        Then the log is read too: a message of Redis's may have been lost on its way.
        """
        try:
            async with asyncio.timeout(self.heartbeat if answered else AWAY_SECONDS):
                await changed.wait()
        except TimeoutError:
            return False
        return True


class _Shown:
    """What one listener has been told of a job."""

    def __init__(self, store: ObjectStore, known: int) -> None:
        self.known = known
        self._store = store
        self._progress = 0.0

    def tell(self, record: JobRecord, changes: list[Change]) -> Iterator[bytes]:
        """Yield the events of new changes; where there are none, that of progress."""
        if self.known == 0:
            changes = [Change(1, record.spec.created_at, State.QUEUED), *changes]
        for change in changes:
            if change.state is State.DELETED:
                return
            now = change is changes[-1]
            seen = record if now else _as_of_then(record, change.state)
            self.known = change.number
            yield self._event(f"job.{change.state.status}", change.at, seen, change.number)
        running = record.state.status is State.RUNNING.status
        if not changes and running and record.progress != self._progress:
            yield self._event(PROGRESS, datetime.now(UTC), record, None)
        self._progress = record.progress

    def _event(self, name: str, at: datetime, record: JobRecord, number: int | None) -> bytes:
        document = JobEvent(type=name, timestamp=at, data=present(record, self._store))
        return _write(document, number)


def _write(document: JobEvent | BatchEvent, number: int | None) -> bytes:
    return format_sse_event(
        data_str=document.model_dump_json(),
        event=document.type,
        id=None if number is None else str(number),
    )


def _batch_event(batch: BatchRecord, name: str, at: datetime) -> bytes:
    return _write(BatchEvent(type=name, timestamp=at, data=present_batch(batch)), batch.finished)


def _moved(before: BatchRecord, now: BatchRecord) -> bool:
    return (before.counts, before.sent) != (now.counts, now.sent)


def _as_of_then(record: JobRecord, state: State) -> JobRecord:
    """Show a job as it was after an earlier change, as far as that is known; without outputs."""
    manifest = record.manifest if state.status.finished else None
    return replace(
        record,
        state=state,
        manifest=manifest.model_copy(update={"outputs": ()}) if manifest else None,
        started_at=None if state is State.QUEUED else record.started_at,
        progress=0.0,
        position=None,
    )
