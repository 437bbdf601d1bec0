"""The courier: takes webhook events from the outbox and sends them, many at once."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import BaseModel

from darkroom_infra import failpoints
from darkroom_infra.ledger import Ledger
from darkroom_infra.presenting import present, present_batch
from darkroom_infra.queue import Doorbell
from darkroom_infra.records import (
    BATCH_COMPLETED,
    AsyncRecordsClient,
    BatchSpec,
    JobSpec,
    RecordsUnavailableError,
    State,
    transitions,
)
from darkroom_infra.records.transitions import Posted, SendState
from darkroom_infra.store import StoreError
from darkroom_infra.telemetry import get_logger

from .outcomes import Outcome
from .schedule import Schedule
from .sending import LIMIT_SECONDS, Sender

MOST_IN_FLIGHT: Final = 2000
MOST_TO_ONE_HOST: Final = 200
"""So many attempts wait for one host at once, so that a dead one does not take all places."""

MOST_IN_TURN: Final = 10_000
"""So many events are kept for one host until it is their turn: as many as a batch has jobs."""

LEASE: Final = timedelta(seconds=2 * LIMIT_SECONDS)
"""How long a taken event is held: longer than any attempt, so that no other courier repeats it."""

TURN_SECONDS: Final = LIMIT_SECONDS - 1
"""How long an event waits for its turn: what is left of its lease is enough for an attempt."""

POLL_SECONDS: Final = 1.0
ALIVE: Final = timedelta(seconds=15)
MAX_PAYLOAD: Final = 20_000
"""Standard Webhooks: payloads under 20 kB."""

_log = get_logger("webhooks")


@dataclass(frozen=True)
class Letter:
    """What is to be sent, where to, and with which secrets."""

    url: str
    secrets: Sequence[str]
    body: bytes


class Courier:
    """Sends what lies in the outbox. For use in one event loop."""

    def __init__(
        self,
        records: AsyncRecordsClient,
        ledger: Ledger,
        sender: Sender,
        schedule: Schedule,
        secrets_of: Callable[[str], Sequence[str]],
    ) -> None:
        """Take the parts; `secrets_of` gives the secrets that sign an owner's events."""
        self._records = records
        self._ledger = ledger
        self._sender = sender
        self._schedule = schedule
        self._secrets_of = secrets_of
        self._rung = asyncio.Event()
        self._in_flight = 0
        self._to_host: Counter[str] = Counter()
        self._places: dict[str, asyncio.Semaphore] = {}
        self._in_turn: set[asyncio.Task[None]] = set()

    def ring(self) -> None:
        """Have it look into the outbox now."""
        self._rung.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Send until told to stop; what is in flight then is finished."""
        bell = Doorbell.for_courier()
        async with asyncio.TaskGroup() as group:
            while not stop.is_set():
                try:
                    await self._records.run(transitions.register_courier(bell, ALIVE))
                    taken = await self._take(group)
                except RecordsUnavailableError as error:
                    _log.warning("webhooks.records_unavailable", error=str(error))
                    taken = 0
                if not taken:
                    await self._wait()
            for task in self._in_turn:
                task.cancel()

    async def _take(self, group: asyncio.TaskGroup) -> int:
        """Take what is due, as far as there is room for it; count it."""
        room = MOST_IN_FLIGHT - self._in_flight
        if room <= 0:
            return 0
        posted = await self._records.run(transitions.take_due(room, LEASE))
        for event in posted:
            self._in_flight += 1
            group.create_task(self._deliver(event))
        return len(posted)

    async def _wait(self) -> None:
        self._rung.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS):
                await self._rung.wait()

    async def _deliver(self, posted: Posted) -> None:
        """Make one attempt. What fails here is tried again once the event's lease has ended."""
        try:
            letter = await self._write(posted)
            if letter is None:
                dropped = _entry(posted, time.time(), None, "the job was deleted")
                await self._note(posted, dropped, SendState.GONE, None)
            else:
                await self._send(posted, letter)
        except (RecordsUnavailableError, StoreError) as error:
            _log.warning("webhooks.interrupted", about=posted.about, error=str(error))
        finally:
            self._in_flight -= 1

    async def _send(self, posted: Posted, letter: Letter) -> None:
        """Make an attempt when there is a place at the host; else it comes when its lease ends."""
        host = urlsplit(letter.url).netloc
        if self._to_host[host] >= MOST_TO_ONE_HOST + MOST_IN_TURN:
            return
        places = self._places.setdefault(host, asyncio.Semaphore(MOST_TO_ONE_HOST))
        self._to_host[host] += 1
        try:
            if not await self._turn(places):
                return
            began = time.time()
            try:
                outcome = await self._sender.send(
                    letter.url, message_id(posted), letter.body, letter.secrets, began
                )
            finally:
                places.release()
        finally:
            self._to_host[host] -= 1
            if not self._to_host[host]:
                del self._to_host[host], self._places[host]
        failpoints.reach("deliver.sent")
        await self._settle(posted, outcome, began)
        failpoints.reach("deliver.noted")

    async def _turn(self, places: asyncio.Semaphore) -> bool:
        """Take a place at a host; False if none was free in time. Who waits is not in flight."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self._in_flight -= 1
        self._in_turn.add(task)
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await places.acquire()
        except TimeoutError:
            return False
        finally:
            self._in_turn.discard(task)
            self._in_flight += 1
        return True

    async def _settle(self, posted: Posted, outcome: Outcome, began: float) -> None:
        attempt = posted.tries + 1
        pause = self._schedule.next_delay(attempt, outcome, random.random())  # noqa: S311
        state = _state(outcome, pause)
        _log.info(
            "webhooks.attempted",
            about=posted.about,
            event_type=posted.event,
            attempt=attempt,
            status=outcome.status,
            state=state,
        )
        await self._note(posted, _entry(posted, began, outcome), state, pause)

    async def _note(
        self, posted: Posted, entry: str, state: SendState, pause: float | None
    ) -> None:
        """Note an attempt; an event that is not tried again is noted in the ledger too."""
        if state is not SendState.PENDING:
            await asyncio.to_thread(self._ledger.note_sent, posted.about, posted.event, state)
        rest = None if pause is None else timedelta(seconds=pause)
        await self._records.run(transitions.note_sent(posted, entry, state, rest))

    async def _write(self, posted: Posted) -> Letter | None:
        """Write the letter about an event; None if what it is about was deleted.

        Raises:
            RecordsUnavailableError: the records are being rebuilt.
        """
        if posted.event == BATCH_COMPLETED:
            batch = await self._records.run(transitions.read_batch(posted.about))
            if batch is None:
                raise RecordsUnavailableError(f"batch {posted.about} is not on record now")
            if batch.erased:
                return None
            document = present_batch(batch)
            return self._address(posted, batch.spec, batch.finished_at, document)
        record = await self._records.run(transitions.read(posted.about))
        if record is None:
            # Redis was emptied: the rebuild posts the event anew.
            raise RecordsUnavailableError(f"job {posted.about} is not on record now")
        if record.state is State.DELETED:
            return None
        at = record.manifest.finished_at if record.manifest else None
        return self._address(posted, record.spec, at, present(record, self._ledger.store))

    def _address(
        self, posted: Posted, spec: JobSpec | BatchSpec, at: datetime | None, document: BaseModel
    ) -> Letter | None:
        if spec.options.callback_url is None:
            return None
        body = _payload(posted.event, at or datetime.now(UTC), document.model_dump(mode="json"))
        return Letter(spec.options.callback_url, self._secrets_of(spec.owner), body)


def message_id(posted: Posted) -> str:
    """Name a message after job and event, so that it has the same id however often it is sent."""
    return f"{posted.about}-{posted.event.replace('.', '-')}"


def _payload(event: str, at: datetime, document: dict[str, Any]) -> bytes:
    """Write an event. Links are left out from the end where there are too many for a webhook."""
    while True:
        content = {"type": event, "timestamp": at.isoformat(), "data": document}
        body = json.dumps(content, separators=(",", ":")).encode()
        outputs = document.get("outputs")
        if len(body) < MAX_PAYLOAD or not outputs:
            return body
        document = document | {"outputs": outputs[: len(outputs) // 2]}


def _state(outcome: Outcome, pause: float | None) -> SendState:
    if outcome.delivered:
        return SendState.DELIVERED
    if outcome.gone:
        return SendState.GONE
    if outcome.permanent:
        return SendState.FORBIDDEN
    return SendState.EXHAUSTED if pause is None else SendState.PENDING


def _entry(posted: Posted, at: float, outcome: Outcome | None, error: str | None = None) -> str:
    """Describe an attempt, as the delivery log shows it."""
    return json.dumps(
        {
            "id": message_id(posted),
            "event": posted.event,
            "attempt": posted.tries + 1,
            "at": datetime.fromtimestamp(at, UTC).isoformat(),
            "status": outcome.status if outcome else None,
            "latency_ms": round(outcome.latency_ms, 1) if outcome else None,
            "response": outcome.excerpt if outcome else "",
            "error": outcome.error if outcome else error,
        }
    )
