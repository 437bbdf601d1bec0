"""Ending a job from outside: cancel and delete."""

from __future__ import annotations

from datetime import timedelta

from starlette.concurrency import run_in_threadpool

from darkroom_infra.ledger import ending
from darkroom_infra.records import JobRecord, State, transitions
from darkroom_wire.jobs import JobError, Status
from darkroom_wire.problems import problem_type

from .errors import ConflictError
from .services import Services

_CANCELED = JobError(
    type=problem_type("canceled"), title="The job was canceled", detail="canceled by its owner"
)


async def cancel(services: Services, record: JobRecord) -> None:
    """Cancel a job. A running attempt finds out at its next step, and stores nothing.

    Raises:
        ConflictError: it has finished already.
    """
    if record.state.status.finished or not await _end(services, record):
        raise ConflictError(f"job {record.spec.id} has finished, so it cannot be canceled")


async def delete(services: Services, record: JobRecord) -> None:
    """Cancel a job if it is unfinished, and delete its latents and results."""
    job_id = record.spec.id
    if not record.state.status.finished:
        await _end(services, record)
    await run_in_threadpool(services.ledger.mark_deleted, job_id)
    await services.records.run(transitions.retire(job_id, State.DELETED))
    await run_in_threadpool(services.ledger.erase, job_id)
    await services.records.run(transitions.settle(job_id))


async def _end(services: Services, record: JobRecord) -> bool:
    """Write a job's end to the ledger, let the records follow; False if it had ended before."""
    manifest = ending(
        record.spec.id, Status.CANCELED, timedelta(seconds=record.spec.ttl), _CANCELED
    )
    winner = await run_in_threadpool(services.ledger.commit, manifest)
    await services.records.run(transitions.finish(winner))
    return winner == manifest
