"""Reading jobs on behalf of their owners."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool

from darkroom_infra.records import JobRecord, State, transitions
from darkroom_wire.ids import is_id

from .errors import GoneError, NotFoundError, UnavailableError
from .services import Services

_REBUILDING = "the job records are being rebuilt; try again"


async def find(services: Services, owner: str, job_id: str) -> JobRecord:
    """Find an owner's job, a deleted one too.

    Raises:
        NotFoundError: there is none, or it is another's.
        UnavailableError: it may be one that is not on record again yet.
    """
    record = await services.records.run(transitions.read(job_id)) if is_id(job_id) else None
    if record is None:
        await check_rebuilt(services)
    elif (services.in_doubt or not record.whole) and not record.state.status.finished:
        record = await _follow(services, record)
    if record is None or record.spec.owner != owner:
        raise NotFoundError(f"there is no job {job_id[:60]!r}")
    return record


async def check_rebuilt(services: Services) -> None:
    """Check that what is not on record does not exist.

    Raises:
        UnavailableError: it may only not be on record again yet.
    """
    if services.in_doubt or not await services.records.epoch():
        raise UnavailableError(_REBUILDING)


async def _follow(services: Services, record: JobRecord) -> JobRecord:
    """Have a record follow the ledger, if that says that the job has ended.

    Raises:
        UnavailableError: it has, and Redis has just lost the record again.
    """
    manifest = await run_in_threadpool(services.ledger.find_manifest, record.spec.id)
    if manifest is None:
        return record
    await services.records.run(transitions.finish(manifest))
    ended = await services.records.run(transitions.read(record.spec.id))
    if ended is None or not ended.state.status.finished:
        raise UnavailableError(_REBUILDING)
    return ended


async def read(services: Services, owner: str, job_id: str) -> JobRecord:
    """Read an owner's job.

    Raises:
        NotFoundError: there is none, or it is another's.
        GoneError: it was deleted.
    """
    record = await find(services, owner, job_id)
    if record.state is State.DELETED:
        raise GoneError(f"job {job_id} was deleted")
    return record


async def wait(services: Services, owner: str, job_id: str, seconds: float) -> JobRecord:
    """Read a job as soon as it has finished, or after so many seconds."""
    return await services.waiters.until_finished(
        lambda: read(services, owner, job_id), job_id, seconds
    )
