"""Accepting a job: checked, admitted, in the ledger, on record. Only then is it accepted."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from starlette.concurrency import run_in_threadpool

from darkroom_infra import failpoints
from darkroom_infra.records import JobRecord, JobSpec, State, transitions
from darkroom_infra.records.transitions import Admission
from darkroom_infra.store import StoredObject
from darkroom_wire.ids import new_id
from darkroom_wire.problems import FieldError

from .errors import GoneError, InvalidRequestError, UnavailableError
from .intake import Submission
from .services import Services


async def accept(
    services: Services, owner: str, submission: Submission, idempotency: str
) -> JobRecord:
    """Accept a submission, or find the job that the same submission made before.

    Raises:
        InvalidRequestError: the idempotency key stands for another request.
        GoneError: the job of that key was deleted, or what is to be copied is gone.
        UnavailableError: the backlog is full, or records are being rebuilt.
        RecordsUnavailableError, StoreError: Redis or S3 is away; nothing is promised.
    """
    if services.in_doubt:
        refuse(Admission.RECOVERING, 0)
    fingerprint = await run_in_threadpool(_fingerprint, submission) if idempotency else ""
    admission, job_id = await services.records.run(
        transitions.admit(
            owner,
            idempotency,
            fingerprint,
            new_id(),
            services.settings.max_queued,
        )
    )
    refuse(admission, services.settings.max_queued)
    if admission is Admission.ADMITTED:
        failpoints.reach("submit.admitted")
        spec = _spec(job_id, owner, submission, services.settings.result_ttl)
        spec = spec.model_copy(update={"idempotency": idempotency, "fingerprint": fingerprint})
        try:
            await run_in_threadpool(services.ledger.accept, spec, submission.body)
        except FileNotFoundError as error:
            raise GoneError("the stored latents are gone, or were replaced meanwhile") from error
        if await services.records.run_durably(transitions.accept(spec)) == "recovering":
            refuse(Admission.RECOVERING, 0)
        failpoints.reach("submit.recorded")
    record = await services.records.run(transitions.read(job_id))
    if record is None:  # Redis was emptied this moment; the ledger has the job
        raise UnavailableError("the job records are being rebuilt; try again")
    if record.state is State.DELETED:
        raise GoneError(f"job {job_id} was deleted")
    return record


def refuse(admission: Admission, max_queued: int, count: int = 1) -> None:
    """Say why a submission of so many jobs may not go on, if it may not.

    Raises:
        InvalidRequestError: the idempotency key stands for another request.
        UnavailableError: the backlog is full, or records are being rebuilt.
    """
    match admission:
        case Admission.MISMATCH:
            raise InvalidRequestError.of(
                FieldError(
                    field="Idempotency-Key",
                    message="this key was used for another request: other latents or options",
                )
            )
        case Admission.FULL:
            raise UnavailableError(
                f"at most {max_queued} jobs are queued at a time, and {count} more do not fit now"
            )
        case Admission.RECOVERING:
            raise UnavailableError("the job records are being rebuilt; try again")
        case Admission.ADMITTED | Admission.KNOWN:
            return


def _fingerprint(submission: Submission) -> str:
    """Tell requests apart that come under one idempotency key."""
    body = submission.body
    # What is copied is not read here: the store's own mark stands for it.
    mark = f"{body.etag} {body.size}".encode() if isinstance(body, StoredObject) else body
    digest = hashlib.sha256(mark)
    digest.update(submission.options.model_dump_json().encode())
    digest.update(submission.rendering.encode())
    return digest.hexdigest()


def _spec(job_id: str, owner: str, submission: Submission, default_ttl: int) -> JobSpec:
    return JobSpec(
        id=job_id,
        owner=owner,
        created_at=datetime.now(UTC),
        options=submission.options,
        format=submission.format,
        rendering=submission.rendering,
        latents=submission.latents,
        content=submission.content,
        ttl=submission.options.ttl or default_ttl,
    )
