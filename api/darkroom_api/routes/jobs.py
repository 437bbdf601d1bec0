"""`/v1/jobs`: submit, read, wait, list, fetch, cancel, delete."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from darkroom_api import ending, intake, submitting
from darkroom_api.auth import Owner
from darkroom_api.errors import (
    ConflictError,
    GoneError,
    InvalidRequestError,
    NotFoundError,
)
from darkroom_api.headers import MAX_WAIT_SECONDS, idempotency_key, preferred_wait
from darkroom_api.presenting import link, present
from darkroom_api.services import Services, ServicesDependency
from darkroom_infra.catalog import VaeEntry
from darkroom_infra.families import VaeFacts
from darkroom_infra.records import JobRecord, State, transitions
from darkroom_wire.ids import is_id
from darkroom_wire.jobs import Job, JobOptions, JobPage, Status
from darkroom_wire.problems import FieldError

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

MAX_PAGE = 200

Wait = Annotated[
    int | None,
    Query(ge=0, le=MAX_WAIT_SECONDS, description="seconds to wait for the job to finish"),
]


class SubmitQuery(JobOptions):
    """The options of a job, and what a `tensor/binary` body says of itself."""

    shape: list[str] = Field([], description="of a tensor/binary body: shape=1&shape=4&…")
    dtype: str | None = Field(None, description="of a tensor/binary body")


_BODY = {"schema": {"type": "string", "format": "binary"}}
_SUBMIT_OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The latents: a safetensors file with one tensor, or raw values.",
        "content": dict.fromkeys((*intake.SAFETENSORS_TYPES, intake.RAW), _BODY),
    }
}


@router.post(
    "",
    status_code=202,
    response_model=Job,
    responses={200: {"model": Job, "description": "finished within `Prefer: wait=N`"}},
    openapi_extra=_SUBMIT_OPENAPI,
)
async def submit(
    request: Request,
    query: Annotated[SubmitQuery, Query()],
    owner: Owner,
    services: ServicesDependency,
    idempotency: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
    prefer: Annotated[list[str] | None, Header()] = None,
) -> Response:
    """Submit latents: 202 once the job cannot be lost, 200 if it ends within `Prefer: wait=N`."""
    _refuse_repeated(request)
    key = idempotency_key(idempotency)
    kind = intake.content_type(request)
    vae = intake.find_vae(services.catalog, query.vae)
    body = await intake.read_body(request, services.settings.max_latents_bytes)
    submission = intake.prepare(
        body,
        kind,
        intake.RawTensor(tuple(query.shape), query.dtype),
        JobOptions.model_validate(query.model_dump(exclude={"shape", "dtype"})),
        vae,
        await _facts(services, vae),
        services.settings,
    )
    record = await submitting.accept(services, owner, submission, key)
    job_id = record.spec.id
    headers = {"Location": f"/v1/jobs/{job_id}"}
    wait = preferred_wait(",".join(prefer or ()))
    if wait is not None:
        headers["Preference-Applied"] = f"wait={wait}"
        record = await _wait(services, owner, job_id, wait)
    finished = record.state.status.finished
    if not finished:
        headers["Retry-After"] = "1"
    return _job(record, services, 200 if finished and wait is not None else 202, headers)


@router.get("", response_model=JobPage)
async def list_jobs(
    request: Request,
    owner: Owner,
    services: ServicesDependency,
    status: Status | None = None,
    batch_id: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
    cursor: Annotated[str | None, Query(description="`next` of the page before")] = None,
) -> JobPage:
    """List your jobs, newest first."""
    _refuse_unknown(request, {"status", "batch_id", "limit", "cursor"})
    if batch_id is not None:
        return JobPage(results=[])
    if cursor is not None and not is_id(cursor):
        raise InvalidRequestError.of(
            FieldError(field="cursor", message=f"`next` of a page expected, not {cursor[:60]!r}")
        )
    states = [state for state in State if state.status is status] if status else []
    records, following = await services.records.run(
        transitions.list_jobs(owner, states, cursor, limit)
    )
    return JobPage(
        results=[present(record, services.ledger.store) for record in records], next=following
    )


@router.get("/{job_id}", response_model=Job)
async def read(
    request: Request, job_id: str, owner: Owner, services: ServicesDependency, wait: Wait = None
) -> Response:
    """Read a job; with `wait` as soon as it has finished, or after that many seconds."""
    _refuse_unknown(request, {"wait"})
    record = (
        await _read(services, owner, job_id)
        if wait is None
        else await _wait(services, owner, job_id, wait)
    )
    return _job(record, services)


@router.get(
    "/{job_id}/result",
    response_class=Response,
    responses={302: {"description": "a presigned link"}, 200: {"description": "the bytes"}},
)
async def result(
    request: Request,
    job_id: str,
    owner: Owner,
    services: ServicesDependency,
    index: Annotated[int, Query(ge=0)] = 0,
    redirect: bool = True,
) -> Response:
    """Fetch one output: 302 to the presigned link, or the bytes with `redirect=false`."""
    _refuse_unknown(request, {"index", "redirect"})
    record = await _read(services, owner, job_id)
    status = record.state.status
    if status is Status.EXPIRED:
        raise GoneError(f"the results of job {job_id} have expired")
    if record.manifest is None or status is not Status.SUCCEEDED:
        raise ConflictError(f"job {job_id} is {status}, so it has no result")
    outputs = record.manifest.outputs
    if index >= len(outputs):
        raise NotFoundError(f"index: job {job_id} has {len(outputs)} outputs, from 0")
    output = outputs[index]
    if redirect:
        return RedirectResponse(link(output, record, services.ledger.store), status_code=302)
    try:
        content = await run_in_threadpool(services.ledger.store.get, output.key)
    except FileNotFoundError as error:
        raise GoneError(f"the results of job {job_id} have expired") from error
    return Response(content, media_type=output.content_type)


@router.post("/{job_id}/cancel", response_model=Job)
async def cancel(job_id: str, owner: Owner, services: ServicesDependency) -> Response:
    """Cancel a job that has not finished."""
    await ending.cancel(services, await _read(services, owner, job_id))
    return _job(await _read(services, owner, job_id), services)


@router.delete("/{job_id}", status_code=204, response_class=Response)
async def delete(job_id: str, owner: Owner, services: ServicesDependency) -> Response:
    """Delete a job: canceled if unfinished; latents and results are gone when this answers."""
    record = await _find(services, owner, job_id)
    # Also where it was deleted before: an interrupted deletion is finished by a repeated call.
    await asyncio.shield(ending.delete(services, record))
    return Response(status_code=204)


async def _find(services: Services, owner: str, job_id: str) -> JobRecord:
    record = await services.records.run(transitions.read(job_id)) if is_id(job_id) else None
    if record is None or record.spec.owner != owner:
        raise NotFoundError(f"there is no job {job_id[:60]!r}")
    return record


async def _read(services: Services, owner: str, job_id: str) -> JobRecord:
    record = await _find(services, owner, job_id)
    if record.state is State.DELETED:
        raise GoneError(f"job {job_id} was deleted")
    return record


async def _wait(services: Services, owner: str, job_id: str, seconds: float) -> JobRecord:
    return await services.waiters.until_finished(
        lambda: _read(services, owner, job_id), job_id, seconds
    )


async def _facts(services: Services, vae: VaeEntry) -> VaeFacts | None:
    """What is known of a VAE: from the catalogue, or from a worker that has loaded it."""
    if vae.facts is not None:
        return vae.facts
    return (await services.records.run(transitions.loaded())).facts.get(vae.name)


def _job(
    record: JobRecord,
    services: Services,
    status_code: int = 200,
    headers: dict[str, str] | None = None,
) -> Response:
    document = present(record, services.ledger.store).model_dump(mode="json")
    return JSONResponse(document, status_code=status_code, headers=headers)


def _refuse_repeated(request: Request) -> None:
    """Refuse a parameter that came twice: which one was meant?"""
    names = [name for name, _ in request.query_params.multi_items() if name != "shape"]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InvalidRequestError.of(
            *(FieldError(field=name, message="was given more than once") for name in repeated)
        )


def _refuse_unknown(request: Request, known: set[str]) -> None:
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        raise InvalidRequestError.of(
            *(
                FieldError(field=name, message="there is no such query parameter")
                for name in unknown
            )
        )
