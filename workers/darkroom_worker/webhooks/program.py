"""The program that delivers webhooks: Celery hears the doorbell, an event loop does the work.

It never loads torch, and slow receivers hold up no decode.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import threading

from darkroom_infra import failpoints
from darkroom_infra.callbacks import parse_networks
from darkroom_infra.ledger import Ledger
from darkroom_infra.queue import DELIVER_TASK, WEBHOOKS_QUEUE, make_celery, work
from darkroom_infra.records import AsyncRecordsClient
from darkroom_infra.settings import Settings
from darkroom_infra.store import ObjectStore, StoreConfig
from darkroom_infra.telemetry import get_logger

from .courier import MOST_IN_FLIGHT, Courier
from .schedule import STANDARD_DELAYS, Schedule
from .sending import LIMIT_SECONDS, Sender

_log = get_logger("webhooks")


def run(settings: Settings) -> None:
    """Deliver until a signal comes; what is in flight then is finished."""
    failpoints.arm(settings.failpoints)
    _allow_many_connections()
    office = PostOffice(settings)
    app = make_celery(settings.redis_url, WEBHOOKS_QUEUE)
    app.task(name=DELIVER_TASK)(office.ring)
    _log.info("webhooks.starting")
    office.start()
    work(app, WEBHOOKS_QUEUE, threads=1)
    office.stop()


def _allow_many_connections() -> None:
    """Raise the limit of open files: every letter in flight is a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MOST_IN_FLIGHT
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class PostOffice:
    """A courier in an event loop of its own thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._courier: Courier
        self._stop: asyncio.Event

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()
        self._ready.wait()

    def ring(self) -> None:
        """Have the courier look into the outbox: the Celery task."""
        self._loop.call_soon_threadsafe(self._courier.ring)

    def stop(self) -> None:
        """Take no more letters, and wait for those in flight."""
        self._stopping.set()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(LIMIT_SECONDS + 1)

    def _run(self) -> None:
        """Deliver until told to stop; if it ends otherwise, so does the program."""
        try:
            asyncio.run(self._deliver())
        finally:
            if not self._stopping.is_set():
                _log.error("webhooks.courier_died")
                os.kill(os.getpid(), signal.SIGTERM)

    async def _deliver(self) -> None:
        settings = self._settings
        records = AsyncRecordsClient(settings.redis_url)
        ledger = Ledger(ObjectStore(StoreConfig.from_settings(settings)))
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._courier = Courier(
            records,
            ledger,
            Sender(parse_networks(settings.webhook_allow)),
            Schedule(settings.webhook_schedule or STANDARD_DELAYS),
            settings.secrets_of,
        )
        self._ready.set()
        await self._courier.run(self._stop)
        await records.close()
        ledger.store.close()
