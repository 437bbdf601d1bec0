"""The application: routes, error handling, and the parts that run beside the requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI

from darkroom_infra import failpoints
from darkroom_infra.batches import Batches
from darkroom_infra.catalog import Catalog
from darkroom_infra.keeper import Keeper, Sweeper
from darkroom_infra.ledger import Ledger
from darkroom_infra.records import AsyncRecordsClient, RecordsClient
from darkroom_infra.settings import Settings
from darkroom_infra.store import ObjectStore, StoreConfig, StoreError
from darkroom_infra.telemetry import get_logger
from darkroom_wire import problems

from . import errors
from .common_headers import CommonHeaders
from .metrics import HttpMetrics
from .routes import batches, deliveries, events, hf, jobs, page, service, uploads, vaes
from .services import Services
from .waiting import Waiters
from .workers import Workers

WEAK_STORE = (
    "the object store ignores conditional PUT (If-None-Match): after a fault a job's result may "
    "be replaced by an equal one, and a cancel may be overtaken"
)

_PROBLEM: dict[str, Any] = {
    "description": "a problem document (RFC 9457)",
    "content": {problems.CONTENT_TYPE: {"schema": problems.Problem.model_json_schema()}},
}

_log = get_logger("api")


def create_app(settings: Settings, catalog: Catalog) -> FastAPI:
    """Wire the service; nothing is opened before the application starts."""
    metrics = HttpMetrics()
    app = FastAPI(
        title="Darkroom",
        summary="Develops the latents of diffusion models into pictures.",
        version="1",
        lifespan=_lifespan(settings, catalog, metrics),
        responses={"4XX": _PROBLEM, "503": _PROBLEM},
    )
    errors.install(app)
    app.add_middleware(CommonHeaders)
    app.add_middleware(metrics.measured)
    for part in (jobs, uploads, batches, deliveries, events, vaes, hf, service, page):
        app.include_router(part.router)
    app.mount("/page", page.PageFiles())
    return app


def _lifespan(
    settings: Settings, catalog: Catalog, metrics: HttpMetrics
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        ledger = Ledger(ObjectStore(StoreConfig.from_settings(settings)))
        records = AsyncRecordsClient(settings.redis_url)
        waiters = Waiters(records)
        warnings: list[str] = []
        blocking_records = RecordsClient(settings.redis_url)
        sweeper = Sweeper(blocking_records, ledger)
        app.state.services = Services(
            settings,
            catalog,
            records,
            ledger,
            Batches(blocking_records, ledger),
            waiters,
            Workers(records),
            sweeper,
            metrics,
            warnings,
        )
        stop = threading.Event()
        keeper = Keeper(blocking_records, ledger, settings.max_attempts)
        failpoints.arm(settings.failpoints)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(waiters.listen()),
                group.create_task(_prepare_store(ledger.store, warnings)),
            ]
            keeping = [
                group.create_task(asyncio.to_thread(part.run, stop)) for part in (keeper, sweeper)
            ]
            yield
            stop.set()
            await asyncio.gather(*keeping)
            for task in tasks:
                task.cancel()
        blocking_records.close()
        await records.close()
        ledger.store.close()

    return lifespan


async def _prepare_store(store: ObjectStore, warnings: list[str]) -> None:
    """Make the bucket and probe what the store can promise, as soon as it answers."""
    while True:
        try:
            await asyncio.to_thread(store.ensure_bucket)
            if not await asyncio.to_thread(store.honours_conditional_put):
                warnings.append(WEAK_STORE)
                _log.warning("api.weak_store", detail=WEAK_STORE)
        except StoreError as error:
            _log.warning("api.store_unavailable", error=str(error))
            await asyncio.sleep(1)
        else:
            return
