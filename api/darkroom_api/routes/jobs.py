"""`/v1/jobs`: submit, read, wait, list, fetch, cancel, delete."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from darkroom_api import again, ending, intake, reading, submitting, uploads
from darkroom_api.auth import Owner
from darkroom_api.callbacks import check_callback
from darkroom_api.errors import (
    ConflictError,
    GoneError,
    InvalidRequestError,
    NotFoundError,
)
from darkroom_api.headers import MAX_WAIT_SECONDS, idempotency_key, preferred_wait, submitted
from darkroom_api.intake import Submission
from darkroom_api.pacing import Submitter
from darkroom_api.pictures import PICTURE_TYPES
from darkroom_api.queries import refuse_body, refuse_repeated, refuse_unknown
from darkroom_api.services import Services, ServicesDependency, intake_rules
from darkroom_infra.presenting import link, present
from darkroom_infra.records import JOB_EVENTS, JobRecord, State, transitions
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
    """The options of a job, and where its latents are if not in the body."""

    vae: str = Field(
        "", max_length=128, description="a name from the catalogue; required, but with `from`"
    )
    shape: list[str] = Field([], description="of raw values: shape=1&shape=4&…")
    dtype: str | None = Field(None, description="of raw values")
    upload: str | None = Field(None, description="instead of a body: the id of an upload")
    from_job: str | None = Field(
        None,
        alias="from",
        description="instead of a body: a job, on whose latents this one is made",
    )

    def options(self) -> dict[str, Any]:
        """Give the options that were given."""
        places = {"shape", "dtype", "upload", "from_job"}
        return self.model_dump(exclude_unset=True, exclude=places)


_BODY = {"schema": {"type": "string", "format": "binary"}}
_SUBMIT_OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "description": "The latents: a safetensors file with one tensor, or raw values. "
        "For task=encode a picture, or a tensor of pixels in [-1, 1] or in uint8. "
        "With `upload` or `from` there is no body.",
        "content": dict.fromkeys((*intake.SAFETENSORS_TYPES, intake.RAW, *PICTURE_TYPES), _BODY),
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
    owner: Submitter,
    services: ServicesDependency,
    idempotency: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
    prefer: Annotated[list[str] | None, Header()] = None,
) -> Response:
    """Submit latents: 202 once the job cannot be lost, 200 if it ends within `Prefer: wait=N`."""
    refuse_repeated(request)
    key = idempotency_key(idempotency)
    submission = await _receive(request, query, owner, services)
    record = await submitting.accept(services, owner, submission, key)
    wait = preferred_wait(",".join(prefer or ()))
    if wait is not None:
        record = await reading.wait(services, owner, record.spec.id, wait)
    finished = record.state.status.finished
    status, headers = submitted(f"/v1/jobs/{record.spec.id}", wait, finished=finished)
    return _job(record, services, status, headers)


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
    refuse_unknown(request, {"status", "batch_id", "limit", "cursor"})
    if batch_id is not None and not is_id(batch_id):
        return JobPage(results=[])
    if cursor is not None and not is_id(cursor):
        raise InvalidRequestError.of(
            FieldError(field="cursor", message=f"`next` of a page expected, not {cursor[:60]!r}")
        )
    states = [state for state in State if state.status is status] if status else []
    records, following = await services.records.run(
        transitions.list_jobs(owner, states, cursor, limit, batch_id or "")
    )
    return JobPage(
        results=[present(record, services.ledger.store) for record in records], next=following
    )


@router.get("/{job_id}", response_model=Job)
async def read(
    request: Request, job_id: str, owner: Owner, services: ServicesDependency, wait: Wait = None
) -> Response:
    """Read a job; with `wait` as soon as it has finished, or after that many seconds."""
    refuse_unknown(request, {"wait"})
    record = (
        await reading.read(services, owner, job_id)
        if wait is None
        else await reading.wait(services, owner, job_id, wait)
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
    refuse_unknown(request, {"index", "redirect"})
    record = await reading.read(services, owner, job_id)
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
    await ending.cancel(services, await reading.read(services, owner, job_id))
    return _job(await reading.read(services, owner, job_id), services)


@router.delete("/{job_id}", status_code=204, response_class=Response)
async def delete(job_id: str, owner: Owner, services: ServicesDependency) -> Response:
    """Delete a job: canceled if unfinished; latents and results are gone when this answers."""
    record = await reading.find(services, owner, job_id)
    # Also where it was deleted before: an interrupted deletion is finished by a repeated call.
    await asyncio.shield(ending.delete(services, record))
    return Response(status_code=204)


async def _receive(
    request: Request, query: SubmitQuery, owner: str, services: Services
) -> Submission:
    """Find the latents, in the body or where the query says, and check them and the options."""
    if query.upload is not None and query.from_job is not None:
        raise InvalidRequestError.of(
            FieldError(field="upload", message="give either upload or from, not both")
        )
    if query.from_job is not None:
        return await _receive_again(request, query, query.from_job, owner, services)
    if not query.vae:
        raise InvalidRequestError.of(FieldError(field="vae", message="is required"))
    kind = intake.content_type(request, query.task) if query.upload is None else ""
    vae = intake.find_vae(services.catalog, query.vae)
    check_callback(query, owner, services.settings, JOB_EVENTS)
    options = JobOptions.model_validate(query.options())
    raw = intake.RawTensor(tuple(query.shape), query.dtype)
    if query.upload is not None:
        await refuse_body(request)
        rules = await intake_rules(services, vae)
        return await uploads.prepare(services, owner, query.upload, raw, options, rules)
    body = await intake.read_body(request, services.settings.max_latents_bytes)
    return intake.prepare(body, kind, raw, options, await intake_rules(services, vae))


async def _receive_again(
    request: Request, query: SubmitQuery, job_id: str, owner: str, services: Services
) -> Submission:
    await refuse_body(request)
    if query.shape or query.dtype is not None:
        raise InvalidRequestError.of(
            FieldError(field="shape", message="the stored latents have their shape and dtype")
        )
    spec = await again.find(services, owner, job_id)
    options = again.inherit(services, spec, query.options())
    check_callback(options, owner, services.settings, JOB_EVENTS)
    return await again.prepare(services, spec, options)


def _job(
    record: JobRecord,
    services: Services,
    status_code: int = 200,
    headers: dict[str, str] | None = None,
) -> Response:
    document = present(record, services.ledger.store).model_dump(mode="json")
    return JSONResponse(document, status_code=status_code, headers=headers)
