"""Accepting a job: checked, admitted, in the ledger, on record. Only then is it accepted."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

from starlette.concurrency import run_in_threadpool

from darkroom_infra.records import JobRecord, JobSpec, State, transitions
from darkroom_infra.records.transitions import Admission
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
        UnavailableError: the backlog is full, or records are being rebuilt.
        RecordsUnavailableError, StoreError: Redis or S3 is away; nothing is promised.
    """
    admission, job_id = await services.records.run(
        transitions.admit(
            owner,
            idempotency,
            await run_in_threadpool(_fingerprint, submission) if idempotency else "",
            new_id(),
            services.settings.max_queued,
        )
    )
    _refuse(admission, services.settings.max_queued)
    if admission is Admission.ADMITTED:
        spec = _spec(job_id, owner, submission, services.settings.result_ttl)
        await run_in_threadpool(services.ledger.accept, spec, submission.body)
        if await services.records.run_durably(transitions.accept(spec)) == "recovering":
            _refuse(Admission.RECOVERING, 0)
    record = await services.records.run(transitions.read(job_id))
    if record is None or record.state is State.DELETED:
        raise GoneError(f"job {job_id} was deleted")
    return record


def _refuse(admission: Admission, max_queued: int) -> None:
    match admission:
        case Admission.MISMATCH:
            raise InvalidRequestError.of(
                FieldError(
                    field="Idempotency-Key",
                    message="this key was used for another request: other latents or options",
                )
            )
        case Admission.FULL:
            raise UnavailableError(f"{max_queued} jobs are queued, the most that are accepted")
        case Admission.RECOVERING:
            raise UnavailableError("the job records are being rebuilt; try again")
        case Admission.ADMITTED | Admission.KNOWN:
            return


def _fingerprint(submission: Submission) -> str:
    """Tell requests apart that come under one idempotency key."""
    digest = hashlib.sha256(submission.body)
    digest.update(submission.options.model_dump_json().encode())
    return digest.hexdigest()


def _spec(job_id: str, owner: str, submission: Submission, default_ttl: int) -> JobSpec:
    return JobSpec(
        id=job_id,
        owner=owner,
        created_at=datetime.now(UTC),
        options=submission.options,
        format=submission.format,
        latents=submission.latents,
        ttl=submission.options.ttl or default_ttl,
    )
