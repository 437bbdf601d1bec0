"""Uploads: files that callers write straight to the store, and the submissions made of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from starlette.concurrency import run_in_threadpool

from darkroom_infra.ledger import UploadSpec, upload_key
from darkroom_infra.records import Content, Rendering
from darkroom_infra.store import StoredObject
from darkroom_infra.sweeping import UPLOADS_KEPT
from darkroom_wire.ids import id_time, is_id, new_id
from darkroom_wire.jobs import JobOptions, Task, Upload
from darkroom_wire.problems import FieldError
from darkroom_wire.tensors import MAX_HEADER_BYTES

from .errors import (
    ConflictError,
    GoneError,
    InvalidRequestError,
    NotFoundError,
    TooLargeError,
)
from .intake import RAW, SAFETENSORS_TYPES, RawTensor, Rules, Source, Submission, examine
from .services import Services

LINK_KEPT: Final = timedelta(hours=1)

HEAD_BYTES: Final = {Task.DECODE: 8 + MAX_HEADER_BYTES, Task.ENCODE: 1 << 20}
"""So much of an object is read to check it: the longest header; of a picture, its size."""


async def announce(services: Services, owner: str, size: int | None) -> Upload:
    """Make a link that takes a file of exactly that size, or of any where it is not known yet.

    A store can hold a link to one size, but to no range: without one, the limit is kept when a job
    is made of the file.

    Raises:
        TooLargeError: more than an upload may have.
    """
    limit = services.settings.max_upload_bytes
    if size is not None and size > limit:
        message = f"{size}, at most {limit} are accepted"
        raise TooLargeError(f"bytes: {message}", [FieldError(field="bytes", message=message)])
    spec = UploadSpec(id=new_id(), owner=owner, bytes=size)
    await run_in_threadpool(services.ledger.announce_upload, spec)
    return Upload(
        id=spec.id,
        url=services.ledger.store.presign_put(
            upload_key(spec.id), size, int(LINK_KEPT.total_seconds())
        ),
        bytes=size,
        expires_at=id_time(spec.id) + LINK_KEPT,
    )


async def prepare(
    services: Services,
    owner: str,
    upload_id: str,
    raw: RawTensor,
    options: JobOptions,
    rules: Rules,
) -> Submission:
    """Check what was uploaded as if it had come as a body; only its beginning is read.

    Raises:
        NotFoundError, GoneError, ConflictError: there is no such upload, no more, or not yet.
        InvalidRequestError: it has another size, or options or content do not fit the VAE.
        TooLargeError: more bytes than an upload may have, or more pixels than a job may have.
    """
    uploaded = await _find(services, owner, upload_id)
    end = min(uploaded.size, HEAD_BYTES[options.task])
    head = await run_in_threadpool(services.ledger.store.get, uploaded.key, 0, end)
    kind = RAW if raw.shape or raw.dtype else SAFETENSORS_TYPES[0]
    found = examine(Source(head, uploaded.size, kind, raw), options, rules)
    tensor = found.tensor
    return Submission(
        options=found.options,
        format=found.format,
        rendering=Rendering.DECODED,
        latents=found.latents,
        body=uploaded,
        content=Content(
            name=tensor.name, shape=tensor.shape, dtype=tensor.dtype, offset=found.begin
        ),
    )


async def _find(services: Services, owner: str, upload_id: str) -> StoredObject:
    missing = NotFoundError(f"there is no upload {upload_id[:60]!r}")
    if not is_id(upload_id):
        raise missing
    age = datetime.now(UTC) - id_time(upload_id)
    expired = GoneError(f"upload {upload_id} has expired")
    try:
        spec = await run_in_threadpool(services.ledger.upload, upload_id)
    except FileNotFoundError:
        raise (expired if age > UPLOADS_KEPT else missing) from None
    if spec.owner != owner:
        raise missing
    if age > UPLOADS_KEPT:
        raise expired
    try:
        uploaded = await run_in_threadpool(services.ledger.store.look, upload_key(upload_id))
    except FileNotFoundError:
        if age > LINK_KEPT:
            raise expired from None
        raise ConflictError(f"nothing has been written to upload {upload_id} yet") from None
    limit = services.settings.max_upload_bytes
    if spec.bytes is None and uploaded.size > limit:
        await run_in_threadpool(services.ledger.store.delete, [uploaded.key])
        message = f"{uploaded.size} bytes were written, at most {limit} are accepted"
        raise TooLargeError(f"upload: {message}", [FieldError(field="upload", message=message)])
    if spec.bytes is not None and uploaded.size != spec.bytes:
        message = f"{uploaded.size} bytes were written, but {spec.bytes} were announced"
        raise InvalidRequestError.of(FieldError(field="upload", message=message))
    return uploaded
