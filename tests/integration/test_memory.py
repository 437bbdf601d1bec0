"""What a queued job costs Redis."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import redis

from darkroom_infra.records import JobSpec
from darkroom_infra.records import transitions as steps
from darkroom_wire.ids import new_id
from darkroom_wire.jobs import Format, JobOptions, Latents
from tests.conftest import Servers

JOBS = 2000
MOST_BYTES = 2048


def test_a_queued_job_takes_less_than_two_kibibytes(servers: Servers, tmp_path: Path) -> None:
    """Record, indexes, doorbell and the reservation of its idempotency key together stay small."""
    with servers.deploy(tmp_path) as deployment:
        records = deployment.records()
        server = redis.Redis.from_url(deployment.environment["DARKROOM_REDIS_URL"])
        specs = [
            JobSpec(
                id=new_id(),
                owner="anonymous",
                created_at=datetime.now(UTC),
                options=JobOptions(vae="sdxl", format=Format.PNG, height=1024, width=1024),
                format=Format.PNG,
                latents=Latents(shape=(1, 4, 128, 128), dtype="float16", bytes=131072),
                ttl=86400,
                idempotency=f"{number:032d}",
                fingerprint="0" * 64,
            )
            for number in range(JOBS)
        ]
        records.begin_epoch("test")
        records.run(steps.admit("anonymous", "", "", new_id(), 10**6))
        records.run(steps.accept(specs[0]))
        before = server.info("memory")["used_memory"]
        records.run_all(
            steps.admit("anonymous", spec.idempotency, spec.fingerprint, spec.id, 10**6)
            for spec in specs
        )
        records.run_all(steps.accept(spec) for spec in specs)
        after = server.info("memory")["used_memory"]
        server.flushdb()
        server.close()
    assert (after - before) / JOBS < MOST_BYTES
