"""`/v1/jobs/ID/events` and `/v1/batches/ID/events`: changes as Server-Sent Events."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response

from darkroom_api import batching, events, reading
from darkroom_api.auth import Owner
from darkroom_api.events import MEDIA_TYPE, EventStream, Listening
from darkroom_api.queries import refuse_repeated, refuse_unknown
from darkroom_api.services import Services, ServicesDependency
from darkroom_infra.records import transitions

router = APIRouter(prefix="/v1", tags=["events"])

LastEventHeader = Annotated[
    str | None,
    Header(alias="Last-Event-ID", description="only what came after this event is sent"),
]
LastEventQuery = Annotated[
    str | None,
    Query(description="the same, for a browser's first request, which has no headers of its own"),
]


def _answers(description: str) -> dict[int | str, dict[str, Any]]:
    return {
        200: {
            "description": description,
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
        },
        204: {"description": "all has been told; an EventSource stops asking"},
    }


@router.get(
    "/jobs/{job_id}/events",
    response_class=Response,
    responses=_answers(
        "Server-Sent Events `job.queued`, `job.running`, `job.succeeded` and so on, one for each "
        "change since `Last-Event-ID`, with the job's document; `job.progress`, without an id, "
        "while it runs. After the job's end the stream ends."
    ),
)
async def job_events(
    request: Request,
    job_id: str,
    owner: Owner,
    services: ServicesDependency,
    header: LastEventHeader = None,
    last_event_id: LastEventQuery = None,
) -> Response:
    """Follow a job."""
    known = _known(request, header, last_event_id)
    record = await reading.read(services, owner, job_id)
    if known and record.state.status.finished:
        changes, _ = await services.records.run(transitions.changes(job_id, known))
        if not changes:
            return Response(status_code=204)
    return EventStream(_listening(services).job_events(job_id, known))


@router.get(
    "/batches/{batch_id}/events",
    response_class=Response,
    responses=_answers(
        "Server-Sent Events `batch.progress`, a few times a second while its jobs go on, and "
        "`batch.completed`, with the batch's document. The id of an event is the number of jobs "
        "that have ended. After `batch.completed` the stream ends."
    ),
)
async def batch_events(
    request: Request,
    batch_id: str,
    owner: Owner,
    services: ServicesDependency,
    header: LastEventHeader = None,
    last_event_id: LastEventQuery = None,
) -> Response:
    """Follow a batch."""
    known = _known(request, header, last_event_id)
    batch = await batching.read(services, owner, batch_id)
    if known and batch.finished_at is not None and known >= batch.finished:
        return Response(status_code=204)
    return EventStream(_listening(services).batch_events(batch_id))


def _known(request: Request, header: str | None, query: str | None) -> int:
    refuse_unknown(request, {"last_event_id"})
    refuse_repeated(request)
    return events.last_event_id(header, query)


def _listening(services: Services) -> Listening:
    return Listening(services.records, services.waiters, services.ledger.store)
