"""`/v1/batches`: many jobs from one file, accepted all or none."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from darkroom_api import batch_intake, batching, intake
from darkroom_api.archiving import Archive
from darkroom_api.auth import Owner
from darkroom_api.callbacks import check_callback
from darkroom_api.errors import ConflictError, InvalidRequestError
from darkroom_api.headers import MAX_WAIT_SECONDS, idempotency_key, preferred_wait, submitted
from darkroom_api.pacing import Submitter
from darkroom_api.queries import refuse_repeated, refuse_unknown
from darkroom_api.services import ServicesDependency, intake_rules
from darkroom_infra.presenting import present, present_batch
from darkroom_infra.records import (
    BATCH_COMPLETED,
    JOB_EVENTS,
    BatchRecord,
    JobRecord,
    State,
    transitions,
)
from darkroom_infra.store import ObjectStore
from darkroom_wire.ids import is_id
from darkroom_wire.jobs import Batch, BatchPage, BatchResults, Job, JobOptions
from darkroom_wire.problems import FieldError

router = APIRouter(prefix="/v1/batches", tags=["batches"])

MAX_PAGE = 200
MAX_RESULTS = 500
ZIP = "application/zip"

Cursor = Annotated[str | None, Query(description="`next` of the page before")]

_BODY = {"schema": {"type": "string", "format": "binary"}}
_SUBMIT_OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A safetensors file with up to 10,000 tensors, each of which is a job.",
        "content": dict.fromkeys(intake.SAFETENSORS_TYPES, _BODY),
    }
}


class BatchQuery(JobOptions):
    """The options of a batch: those of each of its jobs."""


@router.post(
    "",
    status_code=202,
    response_model=Batch,
    responses={200: {"model": Batch, "description": "finished within `Prefer: wait=N`"}},
    openapi_extra=_SUBMIT_OPENAPI,
)
async def submit(
    request: Request,
    query: Annotated[BatchQuery, Query()],
    owner: Submitter,
    services: ServicesDependency,
    idempotency: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
    prefer: Annotated[list[str] | None, Header()] = None,
) -> Response:
    """Submit many latents at once: all become jobs, or none. 202 once they cannot be lost."""
    refuse_repeated(request)
    key = idempotency_key(idempotency)
    batch_intake.check_type(request)
    vae = intake.find_vae(services.catalog, query.vae)
    check_callback(query, owner, services.settings, (*JOB_EVENTS, BATCH_COMPLETED))
    rules = await intake_rules(services, vae)
    options = JobOptions.model_validate(query.model_dump())
    async with batch_intake.receive(request, services.settings.max_batch_bytes) as received:
        submission = await run_in_threadpool(batch_intake.prepare, received, options, rules)
        record = await batching.accept(services, owner, submission, received, key)
    wait = preferred_wait(",".join(prefer or ()))
    if wait is not None:
        record = await batching.wait(services, owner, record.spec.id, wait)
    finished = record.finished == record.total
    status, headers = submitted(f"/v1/batches/{record.spec.id}", wait, finished=finished)
    return _batch(record, status, headers)


@router.get("", response_model=BatchPage)
async def list_batches(
    request: Request,
    owner: Owner,
    services: ServicesDependency,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    cursor: Cursor = None,
) -> BatchPage:
    """List your batches, newest first."""
    refuse_unknown(request, {"limit", "cursor"})
    _check_cursor(cursor)
    records, following = await services.records.run(transitions.list_batches(owner, cursor, limit))
    return BatchPage(results=[present_batch(record) for record in records], next=following)


@router.get("/{batch_id}", response_model=Batch)
async def read(
    request: Request,
    batch_id: str,
    owner: Owner,
    services: ServicesDependency,
    wait: Annotated[
        int | None,
        Query(ge=0, le=MAX_WAIT_SECONDS, description="seconds to wait for all jobs to finish"),
    ] = None,
    finished: Annotated[
        int | None,
        Query(ge=0, description="with wait: or for more jobs than this to have finished"),
    ] = None,
) -> Response:
    """Read a batch; with `wait` once all its jobs have finished, or after that many seconds."""
    refuse_unknown(request, {"wait", "finished"})
    if wait is None:
        return _batch(await batching.read(services, owner, batch_id))
    return _batch(await batching.wait(services, owner, batch_id, wait, finished))


@router.get("/{batch_id}/results", response_model=BatchResults)
async def results(
    request: Request,
    batch_id: str,
    owner: Owner,
    services: ServicesDependency,
    limit: Annotated[int, Query(ge=1, le=MAX_RESULTS)] = 100,
    cursor: Cursor = None,
) -> BatchResults:
    """List the jobs in the order of the batch's file, with links to what they made so far."""
    refuse_unknown(request, {"limit", "cursor"})
    _check_cursor(cursor)
    record = await batching.read(services, owner, batch_id)
    page = await services.records.run(transitions.members(record.spec.id, cursor or "", limit))
    return BatchResults(
        results=await run_in_threadpool(_present_all, page, services.ledger.store),
        next=page[-1].spec.id if len(page) == limit else None,
    )


@router.get(
    "/{batch_id}/results.zip",
    response_class=Response,
    responses={200: {"content": {ZIP: _BODY}, "description": "the files, and `failures.json`"}},
)
async def results_zip(
    request: Request,
    batch_id: str,
    owner: Owner,
    services: ServicesDependency,
    partial: Annotated[bool, Query(description="also before all jobs have finished")] = False,
) -> Response:
    """Fetch all that the jobs made as one zip, the files named after the tensors."""
    refuse_unknown(request, {"partial"})
    record = await batching.read(services, owner, batch_id)
    if record.finished < record.total and not partial:
        raise ConflictError(
            f"{record.total - record.finished} of {record.total} jobs of batch {batch_id} have not "
            "finished; partial=true gives what there is"
        )
    archive = Archive(services.records, services.ledger, record)
    return StreamingResponse(
        archive.content(),
        media_type=ZIP,
        headers={"Content-Disposition": f'attachment; filename="{batch_id}.zip"'},
    )


@router.post("/{batch_id}/cancel", response_model=Batch)
async def cancel(batch_id: str, owner: Owner, services: ServicesDependency) -> Response:
    """Cancel every job of a batch that has not finished."""
    record = await batching.read(services, owner, batch_id)
    if record.finished == record.total:
        raise ConflictError(f"batch {batch_id} has finished, so it cannot be canceled")
    await asyncio.shield(run_in_threadpool(services.batches.cancel, record))
    return _batch(await batching.read(services, owner, batch_id))


@router.delete("/{batch_id}", status_code=204, response_class=Response)
async def delete(batch_id: str, owner: Owner, services: ServicesDependency) -> Response:
    """Delete a batch: its jobs are canceled if unfinished; latents and results are gone."""
    record = await batching.find(services, owner, batch_id)
    if not (record.erased and record.closed):
        await asyncio.shield(run_in_threadpool(services.batches.delete, record))
    return Response(status_code=204)


def _batch(
    record: BatchRecord, status_code: int = 200, headers: dict[str, str] | None = None
) -> Response:
    document = present_batch(record).model_dump(mode="json")
    return JSONResponse(document, status_code=status_code, headers=headers)


def _present_all(page: list[JobRecord], store: ObjectStore) -> list[Job]:
    return [present(record, store) for record in page if record.state is not State.DELETED]


def _check_cursor(cursor: str | None) -> None:
    if cursor is not None and not is_id(cursor):
        raise InvalidRequestError.of(
            FieldError(field="cursor", message=f"`next` of a page expected, not {cursor[:60]!r}")
        )
