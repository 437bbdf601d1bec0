"""Reading jobs and batches while Redis loses what it held."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from darkroom_api import batching, reading
from darkroom_api.errors import NotFoundError, UnavailableError
from darkroom_infra.ledger import Ledger, ending
from darkroom_infra.records import AsyncRecordsClient, JobSpec, Manifest, RecordsClient
from darkroom_infra.records import transitions as steps
from darkroom_wire.ids import new_batch_id, new_id
from darkroom_wire.jobs import Format, JobOptions, Latents, Status
from tests.conftest import Deployment, make_latents

OWNER = "anna"
Read = Callable[[Any], Awaitable[object]]


def in_ledger(ledger: Ledger) -> JobSpec:
    """Have the ledger accept a job, and end it."""
    spec = JobSpec(
        id=new_id(),
        owner=OWNER,
        created_at=datetime.now(UTC),
        options=JobOptions(vae="demo"),
        format=Format.PNG,
        latents=Latents(shape=(1, 4, 8, 8), dtype="float32", bytes=1024),
        ttl=3600,
    )
    ledger.accept(spec, make_latents(1, 4, 8, 8))
    ledger.commit(ending(spec.id, Status.SUCCEEDED, timedelta(days=1)))
    return spec


def run(deployment: Deployment, ledger: object, read: Read) -> object:
    """Read with what an API has, whose Redis nobody doubts by itself."""

    async def reading_once() -> object:
        records = AsyncRecordsClient(deployment.environment["DARKROOM_REDIS_URL"])
        try:
            return await read(SimpleNamespace(records=records, ledger=ledger, in_doubt=False))
        finally:
            await records.close()

    return asyncio.run(reading_once())


def test_a_record_that_was_not_followed_yet_follows(
    deployment: Deployment, records: RecordsClient, ledger: Ledger
) -> None:
    """While records are being rebuilt, the ledger decides whether a job has ended."""
    spec = in_ledger(ledger)
    deployment.flush()
    records.run(steps.accept(spec, rebuilding=True))
    record: Any = run(deployment, ledger, lambda api: reading.read(api, OWNER, spec.id))
    assert record.state.status is Status.SUCCEEDED


def test_what_has_ended_is_not_shown_as_queued(
    deployment: Deployment, records: RecordsClient, ledger: Ledger
) -> None:
    """Where Redis is emptied once more while the ledger is read, the caller is to come again."""
    spec = in_ledger(ledger)
    deployment.flush()
    records.run(steps.accept(spec, rebuilding=True))

    def find_manifest(job_id: str) -> Manifest | None:
        deployment.flush()
        return ledger.find_manifest(job_id)

    emptied = SimpleNamespace(find_manifest=find_manifest)
    with pytest.raises(UnavailableError, match="rebuilt"):
        run(deployment, emptied, lambda api: reading.read(api, OWNER, spec.id))


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda api: reading.read(api, OWNER, new_id()), id="job"),
        pytest.param(lambda api: batching.read(api, OWNER, new_batch_id()), id="batch"),
    ],
)
def test_what_may_not_be_on_record_yet_is_not_denied(
    deployment: Deployment, ledger: Ledger, read: Read
) -> None:
    """Only records that are whole say that there is no such job or batch."""
    with pytest.raises(NotFoundError):
        run(deployment, ledger, read)
    deployment.flush()
    with pytest.raises(UnavailableError, match="rebuilt"):
        run(deployment, ledger, read)
