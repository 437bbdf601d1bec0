"""The worker program: wires the parts and runs Celery with its threads pool."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from celery import Celery, signals

from darkroom_infra.catalog import Catalog
from darkroom_infra.families import VaeFacts
from darkroom_infra.keeper import Keeper
from darkroom_infra.ledger import Ledger
from darkroom_infra.queue import DECODE_QUEUE, DEVELOP_TASK, make_celery
from darkroom_infra.records import RecordsClient, RecordsUnavailableError, transitions
from darkroom_infra.settings import Settings
from darkroom_infra.store import ObjectStore, StoreConfig
from darkroom_infra.telemetry import get_logger

from .attempts import Developer
from .cache import VaeCache, free_memory
from .engine import Engine
from .loading import choose_device, load, locate

PRESENCE_INTERVAL = timedelta(seconds=5)
PRESENCE_LEASE = 3 * PRESENCE_INTERVAL
HELPERS_SECONDS = 2.0
FAREWELL = timedelta(milliseconds=1)

_log = get_logger("worker")


def run(settings: Settings, catalog: Catalog) -> None:
    """Work until a signal comes; then finish what is under way, or hand it back."""
    device = choose_device(settings.device)
    cache = VaeCache(
        locate,
        partial(load, device=device, dtype=settings.dtype),
        partial(free_memory, device),
    )
    records = RecordsClient(settings.redis_url)
    ledger = Ledger(ObjectStore(StoreConfig.from_settings(settings)))
    developer = Developer(
        records, ledger, catalog, Engine(cache), timedelta(seconds=settings.lease_seconds)
    )
    app = make_celery(settings.redis_url)
    app.task(name=DEVELOP_TASK)(developer.develop)

    stop = threading.Event()
    keeper = Keeper(records, ledger, settings.max_attempts)
    helpers = [
        threading.Thread(target=target, args=(stop,), daemon=True)
        for target in (keeper.run, partial(_announce, records, cache))
    ]
    for helper in helpers:
        helper.start()
    drain = partial(_drain, developer, settings.drain_seconds)
    signals.worker_shutting_down.connect(drain, weak=False)
    _log.info("worker.starting", device=str(device), threads=settings.worker_threads)
    _work(app, settings.worker_threads)
    stop.set()
    for helper in helpers:
        helper.join(HELPERS_SECONDS)


def _work(app: Celery, threads: int) -> None:
    worker = app.Worker(
        pool="threads",
        concurrency=threads,
        queues=[DECODE_QUEUE],
        hostname=f"darkroom-{uuid.uuid4().hex[:8]}@%h",
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()


def _announce(records: RecordsClient, cache: VaeCache, stop: threading.Event) -> None:
    """Say every few seconds that this worker lives, and what it holds; at the end, that it left."""
    name = uuid.uuid4().hex
    lease = PRESENCE_LEASE
    while True:
        try:
            records.run(transitions.presence(name, lease, _facts(cache)))
        except RecordsUnavailableError as error:
            _log.warning("worker.not_announced", error=str(error))
        if lease is FAREWELL:
            return
        if stop.wait(PRESENCE_INTERVAL.total_seconds()):
            lease = FAREWELL


def _facts(cache: VaeCache) -> Mapping[str, VaeFacts]:
    return {name: vae.facts for name, vae in cache.held().items()}


def _drain(developer: Developer, seconds: float, **_: Any) -> None:
    """Leave what is under way some time; then hand it back and end, for threads cannot be."""
    developer.stop_taking()

    def end() -> None:
        developer.drain()
        _log.info("worker.ended_after_grace")
        os._exit(0)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
