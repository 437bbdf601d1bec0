"""Ending a job from outside: cancel and delete."""

from __future__ import annotations

from datetime import timedelta

from starlette.concurrency import run_in_threadpool

from darkroom_infra import failpoints
from darkroom_infra.ledger import CANCELED, ending
from darkroom_infra.records import JobRecord, State, transitions
from darkroom_wire.jobs import Status

from .errors import ConflictError
from .services import Services


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
    await services.records.run_durably(transitions.retire(job_id, State.DELETED))
    await run_in_threadpool(services.ledger.erase, job_id)
    failpoints.reach("end.erased")
    batch_id = await services.records.run(transitions.settle(job_id))
    if batch_id:
        await run_in_threadpool(services.batches.close, batch_id)


async def _end(services: Services, record: JobRecord) -> bool:
    """Write a job's end to the ledger, let the records follow; False if it had ended before."""
    manifest = ending(record.spec.id, Status.CANCELED, timedelta(seconds=record.spec.ttl), CANCELED)
    winner = await run_in_threadpool(services.ledger.commit, manifest)
    failpoints.reach("end.committed")
    await services.records.run(transitions.finish(winner))
    return winner == manifest
