"""The worker program: wires the parts and runs Celery with its threads pool."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from celery import signals

from darkroom_infra import failpoints
from darkroom_infra.catalog import Catalog
from darkroom_infra.keeper import Keeper, Sweeper
from darkroom_infra.ledger import Ledger
from darkroom_infra.memory import WorkerMemory
from darkroom_infra.queue import DECODE_QUEUE, DEVELOP_TASK, make_celery, work
from darkroom_infra.records import RecordsClient, RecordsUnavailableError, transitions
from darkroom_infra.settings import Settings
from darkroom_infra.store import ObjectStore, StoreConfig
from darkroom_infra.telemetry import get_logger

from .attempts import Developer
from .cache import VaeCache, free_memory, total_memory
from .engine import USABLE, Engine
from .loading import LoadedVae, choose_device, load, locate
from .planning import least_need
from .watchdog import watch

PRESENCE_INTERVAL = timedelta(seconds=5)
PRESENCE_LEASE = 3 * PRESENCE_INTERVAL
HELPERS_SECONDS = 2.0
FAREWELL = timedelta(milliseconds=1)

_log = get_logger("worker")


def run(settings: Settings, catalog: Catalog) -> None:
    """Work until a signal comes; then finish what is under way, or hand it back."""
    failpoints.arm(settings.failpoints)
    device = choose_device(settings.device)
    cache = VaeCache(
        locate,
        partial(load, device=device, dtype=settings.dtype),
        partial(free_memory, device),
    )
    records = RecordsClient(settings.redis_url)
    ledger = Ledger(ObjectStore(StoreConfig.from_settings(settings)))
    # More lanes than jobs that are fetched at a time would find nothing to do.
    cores = min(torch.get_num_threads(), settings.worker_threads)
    engine = Engine(cache, settings.memory_budget, lanes=cores if device.type == "cpu" else 1)
    most = settings.memory_budget or int(USABLE * total_memory(device))
    developer = Developer(
        records, ledger, catalog, engine, timedelta(seconds=settings.lease_seconds)
    )
    app = make_celery(settings.redis_url)
    app.task(name=DEVELOP_TASK)(developer.develop)

    stop = threading.Event()
    keeper = Keeper(records, ledger, settings.max_attempts)
    sweeper = Sweeper(records, ledger)
    watchdog = partial(watch, engine, developer, timedelta(seconds=settings.attempt_seconds))
    helpers = [
        threading.Thread(target=target, args=(stop,), daemon=True)
        for target in (keeper.run, sweeper.run, watchdog, partial(_announce, records, cache, most))
    ]
    for helper in helpers:
        helper.start()
    drain = partial(_drain, developer, settings.drain_seconds)
    signals.worker_shutting_down.connect(drain, weak=False)
    _log.info("worker.starting", device=str(device), threads=settings.worker_threads)
    work(app, DECODE_QUEUE, settings.worker_threads)
    stop.set()
    for helper in helpers:
        helper.join(HELPERS_SECONDS)


def _announce(records: RecordsClient, cache: VaeCache, budget: int, stop: threading.Event) -> None:
    """Say every few seconds that this worker lives, and what it holds; at the end, that it left."""
    name = uuid.uuid4().hex
    lease = PRESENCE_LEASE
    while True:
        try:
            _say_what_is_held(records, cache.held(), budget, name, lease)
        except RecordsUnavailableError as error:
            _log.warning("worker.not_announced", error=str(error))
        if lease is FAREWELL:
            return
        if stop.wait(PRESENCE_INTERVAL.total_seconds()):
            lease = FAREWELL


def _say_what_is_held(
    records: RecordsClient,
    held: Mapping[str, LoadedVae],
    budget: int,
    worker: str,
    lease: timedelta,
) -> None:
    """Send facts each time, and the details of a VAE only where the records have other ones."""
    facts = {name: vae.facts for name, vae in held.items()}
    details = {name: vae.details for name, vae in held.items()}
    needs = {name: need for name, vae in held.items() if (need := least_need(vae))}
    memory = WorkerMemory(budget, needs)
    for name in records.run(transitions.presence(worker, lease, facts, details, memory)):
        records.run(transitions.note_details(name, details[name]))


def _drain(developer: Developer, seconds: float, **_: Any) -> None:
    """Leave what is under way some time; then hand it back and end, for threads cannot be."""
    developer.stop_taking()

    def end() -> None:
        developer.hand_back()
        _log.info("worker.ended_after_grace")
        os._exit(0)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
