"""The service itself: queue, health, readiness."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from darkroom_api.auth import Owner
from darkroom_api.metrics import Exposition
from darkroom_api.services import Services, ServicesDependency
from darkroom_infra.records import RecordsUnavailableError, transitions
from darkroom_infra.store import StoreError
from darkroom_wire.jobs import QueueState

router = APIRouter(tags=["service"])


@router.get("/v1/queue")
async def queue(owner: Owner, services: ServicesDependency) -> QueueState:  # noqa: ARG001
    """Tell what waits and who works."""
    statistics = await services.records.run(transitions.statistics())
    oldest = statistics.oldest_ms
    return QueueState(
        queued=sum(statistics.depth.values()),
        running=statistics.running,
        by_priority={priority.value: depth for priority, depth in statistics.depth.items()},
        by_vae=dict(statistics.backlog),
        workers=statistics.workers,
        throughput_per_minute=statistics.finished_last_minute,
        oldest_queued_seconds=oldest / 1000 if oldest is not None else None,
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "Prometheus's text format"}},
)
async def metrics(request: Request, owner: Owner, services: ServicesDependency) -> Response:  # noqa: ARG001
    """Tell Prometheus of the queue, the workers, what was done, and this process."""
    records = services.records
    try:
        known = await asyncio.gather(
            records.run(transitions.statistics()),
            records.run(transitions.loaded()),
            records.run(transitions.read_tallies()),
        )
    except RecordsUnavailableError:
        known = None  # what this process knows of itself matters most just then
    exposition = Exposition(services.metrics, known)
    content, content_type = exposition.encode(request.headers.get("accept", ""))
    return Response(content, media_type=content_type)


@router.get("/healthz")
async def health() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "a part is missing"}})
async def ready(services: ServicesDependency) -> Response:
    """Redis and S3 answer, and the records are whole."""
    parts = {"redis": await _redis(services), "s3": await _s3(services)}
    fine = all(state == "ok" for state in parts.values())
    document: dict[str, Any] = {
        "status": "ok" if fine else "unavailable",
        **parts,
        "warnings": services.warnings,
    }
    headers = {} if fine else {"Retry-After": "2"}
    return JSONResponse(document, status_code=200 if fine else 503, headers=headers)


async def _redis(services: Services) -> str:
    try:
        whole = await services.records.epoch() and not services.in_doubt
    except RecordsUnavailableError as error:
        return f"unreachable: {error}"
    return "ok" if whole else "records are being compared with the ledger"


async def _s3(services: Services) -> str:
    try:
        await run_in_threadpool(services.ledger.store.check)
    except StoreError as error:
        return f"unreachable: {error}"
    return "ok"
