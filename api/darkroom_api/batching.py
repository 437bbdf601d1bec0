"""Batches on behalf of their owners: accepting, reading, waiting."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import BinaryIO, Final

from starlette.concurrency import run_in_threadpool

from darkroom_infra import failpoints
from darkroom_infra.records import BatchMember, BatchRecord, BatchSpec, transitions
from darkroom_infra.records.transitions import Admission
from darkroom_wire.ids import is_id, member_id, new_batch_id
from darkroom_wire.problems import FieldError

from . import reading
from .batch_intake import BatchSubmission, Received
from .errors import GoneError, NotFoundError, TooLargeError
from .services import Services
from .submitting import refuse

REST_SECONDS: Final = 0.1
"""How long one who waits for a batch is left alone after a change: there may be many of them."""


async def accept(
    services: Services,
    owner: str,
    submission: BatchSubmission,
    received: Received,
    idempotency: str,
) -> BatchRecord:
    """Accept all jobs of a batch or none, or find the batch that the same submission made before.

    Raises:
        InvalidRequestError: the idempotency key stands for another request.
        TooLargeError: more jobs than may ever be queued.
        UnavailableError: the backlog is full, or records are being rebuilt.
        RecordsUnavailableError, StoreError: Redis or S3 is away; nothing is promised.
    """
    count, most = len(submission.members), services.settings.max_queued
    if count > most:
        message = f"the batch has {count} jobs, but at most {most} may be queued at a time"
        raise TooLargeError(message, [FieldError(field="latents", message=message)])
    if services.in_doubt:
        refuse(Admission.RECOVERING, 0)
    fingerprint = _fingerprint(submission, received) if idempotency else ""
    admission, batch_id = await services.records.run(
        transitions.admit(owner, idempotency, fingerprint, new_batch_id(), most, count)
    )
    refuse(admission, most, count)
    if admission is Admission.ADMITTED:
        failpoints.reach("submit.admitted")
        spec = _spec(batch_id, owner, submission, services.settings.result_ttl)
        spec = spec.model_copy(update={"idempotency": idempotency, "fingerprint": fingerprint})
        await run_in_threadpool(_accept, services, spec, received.file)
        failpoints.reach("submit.recorded")
    record = await read(services, owner, batch_id)
    if record.registered < record.total:
        await _complete(services, batch_id)
        record = await read(services, owner, batch_id)
    return record


async def find(services: Services, owner: str, batch_id: str) -> BatchRecord:
    """Find an owner's batch, a deleted one too.

    Raises:
        NotFoundError: there is none, or it is another's.
        UnavailableError: it may be one that is not on record again yet.
    """
    record = (
        await services.records.run(transitions.read_batch(batch_id)) if is_id(batch_id) else None
    )
    if record is None:
        await reading.check_rebuilt(services)
    if record is None or record.spec.owner != owner:
        raise NotFoundError(f"there is no batch {batch_id[:60]!r}")
    return record


async def read(services: Services, owner: str, batch_id: str) -> BatchRecord:
    """Read an owner's batch.

    Raises:
        NotFoundError: there is none, or it is another's.
        GoneError: it was deleted.
    """
    record = await find(services, owner, batch_id)
    if record.erased:
        raise GoneError(f"batch {batch_id} was deleted")
    return record


async def wait(
    services: Services, owner: str, batch_id: str, seconds: float, beyond: int | None = None
) -> BatchRecord:
    """Read a batch as soon as all its jobs have ended, or more than `beyond`, or time is over."""

    def enough(record: BatchRecord) -> bool:
        return record.finished == record.total or (beyond is not None and record.finished > beyond)

    return await _until(services, lambda: read(services, owner, batch_id), enough, seconds)


async def _until(
    services: Services,
    look: Callable[[], Awaitable[BatchRecord]],
    enough: Callable[[BatchRecord], bool],
    seconds: float,
) -> BatchRecord:
    clock = asyncio.get_running_loop().time
    deadline = clock() + seconds
    record = await look()
    async with services.waiters.listening(record.spec.id) as changed:
        while True:
            changed.clear()
            record = await look()
            if enough(record) or services.waiters.closing:
                return record
            try:
                async with asyncio.timeout_at(deadline):
                    await changed.wait()
                    await asyncio.sleep(REST_SECONDS)
            except TimeoutError:
                return await look()


def _accept(services: Services, spec: BatchSpec, file: BinaryIO) -> None:
    services.ledger.accept_batch(spec, file)
    if not services.batches.put_on_record(spec):
        refuse(Admission.RECOVERING, 0)


async def _complete(services: Services, batch_id: str) -> None:
    """Go on where an earlier submission of the same batch was interrupted, or still is at work."""
    try:
        recorded = await run_in_threadpool(services.batches.complete, batch_id)
    except FileNotFoundError as error:
        raise GoneError(f"batch {batch_id} was deleted") from error
    if not recorded:
        refuse(Admission.RECOVERING, 0)


def _fingerprint(submission: BatchSubmission, received: Received) -> str:
    """Tell requests apart that come under one idempotency key."""
    digest = hashlib.sha256(b"batch")
    digest.update(received.sha256.encode())
    digest.update(submission.options.model_dump_json().encode())
    return digest.hexdigest()


def _spec(batch_id: str, owner: str, submission: BatchSubmission, default_ttl: int) -> BatchSpec:
    return BatchSpec(
        id=batch_id,
        owner=owner,
        created_at=datetime.now(UTC),
        options=submission.options,
        format=submission.format,
        ttl=submission.options.ttl or default_ttl,
        members=tuple(
            BatchMember(
                id=member_id(batch_id, index),
                name=member.name,
                latents=member.latents,
                offset=member.offset,
            )
            for index, member in enumerate(submission.members)
        ),
    )
