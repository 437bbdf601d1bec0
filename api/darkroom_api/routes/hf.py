"""`/hf`: the dialect that `diffusers.utils.remote_utils` speaks. Each call is a durable job."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from darkroom_api import dialect, reading, submitting
from darkroom_api.auth import AddressOwner
from darkroom_api.dialect import (
    BASE64,
    HOP_SECONDS,
    JSON,
    DecodeQuery,
    EncodeQuery,
    Envelope,
    Received,
    ResultQuery,
    Waiting,
)
from darkroom_api.dialect_answers import JOB_HEADER, answer, naming, stopping
from darkroom_api.errors import NotFoundError
from darkroom_api.intake import RAW
from darkroom_api.pacing import AddressSubmitter
from darkroom_api.pictures import PICTURE_TYPES
from darkroom_api.queries import refuse_repeated
from darkroom_api.services import Services, ServicesDependency, intake_rules
from darkroom_infra.catalog import UnknownVaeError, VaeEntry
from darkroom_infra.records import JobRecord
from darkroom_wire.jobs import Format

router = APIRouter(prefix="/hf/{name}", tags=["diffusers"])

SLICE_SECONDS: Final = 15.0
"""How often one who waits is looked after: whether he is still there."""

_BINARY: Final[dict[str, Any]] = {"schema": {"type": "string", "format": "binary"}}
_ENVELOPE: Final[dict[str, Any]] = {"schema": Envelope.model_json_schema()}
_JOB: Final = {JOB_HEADER: {"description": "the job's id", "schema": {"type": "string"}}}
_SHAPE: Final = {
    "shape": {"description": "of a tensor: a JSON list", "schema": {"type": "string"}},
    "dtype": {"description": "of a tensor", "schema": {"type": "string"}},
}


def _body(description: str, *further: str) -> dict[str, Any]:
    content = dict.fromkeys((RAW, *further), _BINARY) | dict.fromkeys((BASE64, JSON), _ENVELOPE)
    return {"requestBody": {"required": True, "description": description, "content": content}}


def _answers(*kinds: str) -> dict[int | str, dict[str, Any]]:
    return {
        200: {
            "description": "what the job made",
            "headers": _JOB | _SHAPE,
            "content": dict.fromkeys(kinds, _BINARY) | {JSON: _ENVELOPE},
        },
        303: {
            "description": "not yet: only with redirect=true",
            "headers": _JOB | {"Location": {"schema": {"type": "string"}}},
        },
        "502": {"description": "the job failed through no fault of the caller"},
    }


_DECODED = (RAW, *(Format(name).content_type for name in ("jpeg", "png", "mp4")))


@router.post(
    "/decode",
    response_class=Response,
    responses=_answers(*_DECODED),
    openapi_extra=_body("The latents, as raw values or in JSON in base64."),
)
async def decode(
    request: Request,
    name: str,
    query: Annotated[DecodeQuery, Query()],
    owner: AddressSubmitter,
    services: ServicesDependency,
) -> Response:
    """Decode latents, as `diffusers.utils.remote_utils.remote_decode` asks for it."""
    refuse_repeated(request)
    vae = _find_vae(services, name)
    limit = services.settings.max_latents_bytes
    received = await dialect.read_decode(request, query, vae, limit)
    return await _develop(request, services, owner, vae, received, query)


@router.post(
    "/encode",
    response_class=Response,
    responses=_answers(RAW),
    openapi_extra=_body(
        "A picture's file, or raw pixels in [-1, 1] or in uint8; or these in JSON in base64.",
        *PICTURE_TYPES,
    ),
)
async def encode(
    request: Request,
    name: str,
    query: Annotated[EncodeQuery, Query()],
    owner: AddressSubmitter,
    services: ServicesDependency,
) -> Response:
    """Encode a picture, as `diffusers.utils.remote_utils.remote_encode` asks for it."""
    refuse_repeated(request)
    vae = _find_vae(services, name)
    limit = services.settings.max_latents_bytes
    received = await dialect.read_encode(request, query, vae, limit)
    return await _develop(request, services, owner, vae, received, query)


@router.get("/jobs/{job_id}", response_class=Response, responses=_answers(*_DECODED))
async def result(
    request: Request,
    name: str,
    job_id: str,
    query: Annotated[ResultQuery, Query()],
    owner: AddressOwner,
    services: ServicesDependency,
) -> Response:
    """Wait for the job of a call that was redirected, and answer as the call would have been."""
    refuse_repeated(request)
    vae = _find_vae(services, name)
    record = await reading.read(services, owner, job_id)
    if record.spec.options.vae != vae.name:
        raise NotFoundError(f"there is no job {job_id[:60]!r} of {vae.name}")
    with naming(job_id):
        return await _follow(request, services, vae, record, query, in_base64=query.base64)


async def _develop(
    request: Request,
    services: Services,
    owner: str,
    vae: VaeEntry,
    received: Received,
    query: Waiting,
) -> Response:
    """Make a job of a call, and answer when it has ended. Who hangs up meanwhile loses nothing."""
    submission = dialect.prepare(received, await intake_rules(services, vae))
    record = await submitting.accept(services, owner, submission, "")
    with naming(record.spec.id):
        return await _follow(request, services, vae, record, query, in_base64=received.in_base64)


async def _follow(
    request: Request,
    services: Services,
    vae: VaeEntry,
    record: JobRecord,
    query: Waiting,
    *,
    in_base64: bool,
) -> Response:
    job_id = record.spec.id
    seconds = float(query.wait or HOP_SECONDS) if query.redirect else float("inf")
    record = await _until_ended(request, services, record, seconds)
    if record.state.status.finished:
        return await answer(record, vae, services.ledger, in_base64=in_base64)
    if query.redirect:
        return RedirectResponse(
            _location(vae.name, job_id, query, in_base64),
            status_code=303,
            headers={JOB_HEADER: job_id},
        )
    raise stopping(job_id)


async def _until_ended(
    request: Request, services: Services, record: JobRecord, seconds: float
) -> JobRecord:
    """Wait for a job's end, as long as there is time, a caller and a service that goes on."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    owner, job_id = record.spec.owner, record.spec.id
    while True:
        left = deadline - clock()
        record = await reading.wait(services, owner, job_id, min(left, SLICE_SECONDS))
        if (
            record.state.status.finished
            or clock() >= deadline
            or services.waiters.closing
            or await request.is_disconnected()
        ):
            return record


def _location(name: str, job_id: str, query: Waiting, in_base64: bool) -> str:
    """Say where a call goes on: with the same key, to be answered in the same form."""
    carried: dict[str, object] = {"redirect": "true"}
    if query.wait is not None:
        carried["wait"] = query.wait
    if in_base64:
        carried["base64"] = "true"
    if query.api_key is not None:
        carried["api_key"] = query.api_key.get_secret_value()
    return f"/hf/{quote(name, safe='')}/jobs/{job_id}?{urlencode(carried)}"


def _find_vae(services: Services, name: str) -> VaeEntry:
    try:
        return services.catalog[name]
    except UnknownVaeError:
        known = ", ".join(sorted(services.catalog))
        raise NotFoundError(f"there is no VAE {name[:60]!r}: one of {known}") from None
