"""The dialect that diffusers speaks with remote VAEs: how a job is answered."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final

from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from darkroom_infra.catalog import VaeEntry
from darkroom_infra.ledger import Ledger
from darkroom_infra.records import JobRecord, JobSpec, RecordsUnavailableError, Rendering
from darkroom_infra.store import StoreError
from darkroom_wire.jobs import Format, JobError, Status
from darkroom_wire.problems import problem_type
from darkroom_wire.tensors import PIXEL_DTYPES, Tensor, from_safetensors

from .dialect import JSON, check_one
from .errors import ApiError, ConflictError, GoneError, UnavailableError
from .intake import RAW

JOB_HEADER: Final = "X-Darkroom-Job"

_VIDEO_DIMENSIONS: Final = 5
_CALLERS_FAULTS: Final = {
    problem_type(name)
    for name in ("invalid-latents", "invalid-picture", "invalid-format", "out-of-memory")
}
"""Failures that another VAE, tensor or option would have prevented."""


class JobFailedError(ApiError):
    """The job behind a call failed: 422 where the call was at fault, else 502."""

    def __init__(self, job_id: str, error: JobError) -> None:
        super().__init__(f"job {job_id} failed: {error.title}: {error.detail}")
        self.name = error.type.removeprefix(problem_type(""))
        self.status = (
            HTTPStatus.UNPROCESSABLE_ENTITY
            if error.type in _CALLERS_FAULTS
            else HTTPStatus.BAD_GATEWAY
        )


@contextmanager
def naming(job_id: str) -> Iterator[None]:
    """Name the job in errors too: it goes on, and its owner can fetch it elsewhere."""
    try:
        yield
    except ApiError as error:
        raise _named(error, job_id) from error.__cause__
    except (RecordsUnavailableError, StoreError) as error:
        away = UnavailableError(f"Redis or S3 cannot be reached now; {_elsewhere(job_id)}")
        raise _named(away, job_id) from error


def _named(error: ApiError, job_id: str) -> ApiError:
    error.headers = {**error.headers, JOB_HEADER: job_id}
    return error


def stopping(job_id: str) -> UnavailableError:
    """Make the error for a service that stops before a job has ended."""
    return UnavailableError(f"the service is stopping; {_elsewhere(job_id)}")


async def answer(record: JobRecord, vae: VaeEntry, ledger: Ledger, *, in_base64: bool) -> Response:
    """Answer with what a finished job made.

    Raises:
        JobFailedError: it failed.
        ConflictError: it was canceled.
        GoneError: its results have expired.
        InvalidRequestError: it made several things, and the answer has room for one.
        StoreError: S3 is away.
    """
    job_id = record.spec.id
    _check_success(record)
    assert record.manifest is not None  # noqa: S101 - else the job had not succeeded
    outputs = record.manifest.outputs
    check_one(len(outputs), vae)
    try:
        content = await run_in_threadpool(ledger.store.get, outputs[0].key)
    except FileNotFoundError as error:
        raise GoneError(f"the results of job {job_id} have expired") from error
    if record.spec.format is not Format.SAFETENSORS:
        return Response(content, media_type=outputs[0].content_type, headers={JOB_HEADER: job_id})
    return await run_in_threadpool(_tensor, content, record.spec, vae, in_base64)


def _check_success(record: JobRecord) -> None:
    job_id, status = record.spec.id, record.state.status
    if status is Status.EXPIRED:
        raise GoneError(f"the results of job {job_id} have expired")
    error = record.manifest.error if record.manifest else None
    if error is None:
        return
    if status is Status.CANCELED:
        raise ConflictError(f"job {job_id} was canceled: {error.detail}")
    raise JobFailedError(job_id, error)


def _tensor(content: bytes, spec: JobSpec, vae: VaeEntry, in_base64: bool) -> Response:
    (tensor,) = from_safetensors(content, PIXEL_DTYPES).values()
    shape, dtype, data = _without_batch(tensor, spec, vae), tensor.info.dtype, tensor.data
    if dtype == "bfloat16" and spec.latents.dtype != "bfloat16":
        dtype, data = "float32", widen(data)
    headers = {JOB_HEADER: spec.id}
    if in_base64:
        values = base64.b64encode(data).decode("ascii")
        document = {"inputs": values, "parameters": {"shape": shape, "dtype": dtype}}
        return Response(json.dumps(document), media_type=JSON, headers=headers)
    return Response(
        data, media_type=RAW, headers={**headers, "shape": json.dumps(shape), "dtype": dtype}
    )


def _without_batch(tensor: Tensor, spec: JobSpec, vae: VaeEntry) -> list[int]:
    """Give the shape; frames that are ready to be shown come as one video's, without a batch."""
    shape = list(tensor.info.shape)
    if spec.rendering is Rendering.DECODED or len(shape) != _VIDEO_DIMENSIONS:
        return shape
    check_one(shape[0], vae)
    return shape[1:]


def widen(values: memoryview) -> memoryview:
    """Turn bfloat16 into float32, exactly: its bytes are the upper half of float32's."""
    widened = bytearray(2 * len(values))
    widened[2::4] = values[0::2]
    widened[3::4] = values[1::2]
    return memoryview(widened)


def _elsewhere(job_id: str) -> str:
    return f"job {job_id} goes on, and GET /v1/jobs/{job_id} will have its result"
