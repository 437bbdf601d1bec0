"""Redis that is killed, emptied, cut short and starved; messages that are lost or doubled."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta

from darkroom_infra.ledger import ending
from darkroom_infra.records import JobSpec
from darkroom_infra.records.client import PREFIX
from darkroom_wire.ids import new_id
from darkroom_wire.jobs import Format, JobOptions, Latents, Status
from tests.conftest import eventually
from tests.faults.doorbells import Echo, Thief
from tests.faults.load import Load
from tests.faults.outcome import Outcome, judge
from tests.faults.processes import Service
from tests.faults.proxy import HEALTHY, Rewrite, Trouble
from tests.faults.scenarios.workers import latents
from tests.faults.site import Lab, Listener, Site


def killed(site: Site, kills: int) -> Outcome:
    """Kill -9 of Valkey under load; each worker has to hear the bell again afterwards."""
    lives = [worker.life for worker in site.workers]
    resumed = []
    with Listener(site.valkey.url) as listener, Load(site, backlog=60) as load:
        load.order()
        for _ in range(kills):
            load.wait_finished(5)
            site.valkey.kill()
            counts = [len(life.said("job.ended")) for life in lives]
            site.valkey.start()
            resumed.append(_until_work(listener, time.monotonic()))
            for life, count in zip(lives, counts, strict=True):
                eventually(lambda life=life, count=count: len(life.said("job.ended")) > count, 90)  # type: ignore[misc]
        load.cease()
        load.settle()
    outcome = judge(site, load.journal)
    outcome.counts["kills"] = kills
    outcome.counts["workers that ended"] = sum(life.status is not None for life in lives)
    outcome.measured("resumed", resumed)
    return outcome


def _until_work(listener: Listener, since: float) -> float:
    """Measure how long it takes until a job is taken."""

    def taken() -> float:
        return next(
            (c.moment for c in listener.changes if c.moment > since and c.state == "running"), 0.0
        )

    return eventually(taken, 90) - since


def emptied(site: Site, times: int) -> Outcome:
    """FLUSHALL while jobs come in and run."""

    def lose() -> None:
        site.valkey.client.flushall()

    return _losing(site, times, lose)


def emptied_twice(site: Site, times: int) -> Outcome:
    """FLUSHALL, and again while the records are being rebuilt."""
    client = site.valkey.client

    def count() -> int:
        return sum(1 for _ in client.scan_iter(f"{PREFIX}job:*", count=1000))

    def lose() -> None:
        # S3 is slow, so that the rebuild lasts; it is overtaken shortly before its end.
        before = count()
        site.s3_line.disturb(Trouble(where=b"GET ", delay=0.1), cut=False)
        client.flushall()
        eventually(lambda: count() > 0.8 * before, 60)
        client.flushall()
        site.s3_line.disturb(HEALTHY, cut=False)

    return _losing(site, times, lose)


def cut_short(site: Site, times: int, share: float = 0.3) -> Outcome:
    """Kill -9 of Valkey, and the tail of its append-only file is gone: some jobs, silently."""

    def lose() -> None:
        site.valkey.kill()
        site.valkey.lose_tail(share)
        site.valkey.start()

    return _losing(site, times, lose)


def _losing(site: Site, times: int, lose: Callable[[], None]) -> Outcome:
    rebuilt = []
    with Load(site, backlog=60) as load:
        load.order()
        for _ in range(times):
            load.wait_finished(10)
            lose()
            since = time.monotonic()
            load.wait_accepted(1)
            rebuilt.append(time.monotonic() - since)
        load.cease()
        load.settle()
    outcome = judge(site, load.journal)
    outcome.counts["times"] = times
    outcome.measured("accepting again", rebuilt)
    return outcome


def rebuilt(lab: Lab, jobs: int) -> Outcome:
    """`darkroom recover` puts a ledger full of jobs on record, half of which have ended."""
    outcome = Outcome()
    with lab.site(apis=0, workers=0) as site:
        site.ledger.store.ensure_bucket()
        body = latents(0.0)
        specs = [_spec(len(body)) for _ in range(jobs)]
        ends = [ending(spec.id, Status.CANCELED, timedelta(days=1)) for spec in specs[::2]]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda spec: site.ledger.accept(spec, body), specs))
            list(pool.map(site.ledger.commit, ends))
        command = Service("recover", ["recover"], site.environment, site.folder)
        since = time.monotonic()
        life = command.run()
        outcome.measured("rebuilt", time.monotonic() - since)
        outcome.counts["jobs"] = jobs
        found = sum(1 for _ in site.valkey.client.scan_iter(f"{PREFIX}job:*", count=1000))
        outcome.counts["lost"] = jobs - found
        queued = sum(site.statistics().depth.values())
        if queued != jobs - len(ends):
            outcome.violate("rebuilt", f"{queued} are queued, not {jobs - len(ends)}")
        if life.status != 0 or found != jobs:
            outcome.violate("rebuilt", f"{found} of {jobs}, status {life.status}")
        said = life.log.read_text()
        if str(jobs) not in said:
            outcome.violate("rebuilt", f"recover said {said[-300:]!r}")
    return outcome


def _spec(size: int) -> JobSpec:
    return JobSpec(
        id=new_id(),
        owner="anonymous",
        created_at=datetime.now(UTC),
        options=JobOptions(vae="demo"),
        format=Format.PNG,
        latents=Latents(shape=(1, 4, 4, 4), dtype="float32", bytes=size),
        ttl=86_400,
    )


def deaf(site: Site, jobs: int) -> Outcome:
    """The first doorbell of every job is lost on its way."""
    thief = Thief()
    outcome = _overheard(site, thief, jobs)
    outcome.counts["messages"] = thief.taken
    return outcome


def echoing(site: Site, jobs: int) -> Outcome:
    """Every doorbell comes twice."""
    echo = Echo(site.valkey.url)
    outcome = _overheard(site, echo, jobs)
    outcome.counts["messages"] = echo.doubled
    return outcome


def _overheard(site: Site, rewrite: Rewrite, jobs: int) -> Outcome:
    """Have somebody sit on every new connection to Redis while jobs come in and run."""
    site.redis_line.rewrite(rewrite)
    site.redis_line.heal()
    site.await_ready()
    with Load(site) as load:
        load.order(jobs)
        load.settle()
    site.redis_line.rewrite(None)
    site.redis_line.heal()
    return judge(site, load.journal)


def out_of_memory(site: Site) -> Outcome:
    """Valkey at its memory limit: nothing is accepted, what runs ends, and later all goes on."""
    return _full(site, site.valkey.full_memory())


def disk_full(site: Site) -> Outcome:
    """Valkey cannot write its append-only file: it ends itself, and is started with more room."""
    return _full(site, site.valkey.full_disk())


def _full(site: Site, starving: AbstractContextManager[None]) -> Outcome:
    with Load(site, backlog=60) as load:
        load.order()
        load.wait_finished(5)
        with starving:
            before = sum(load.journal.refusals.values())
            eventually(lambda: sum(load.journal.refusals.values()) >= before + 20, 90)
            accepted = load.accepted
            eventually(lambda: sum(load.journal.refusals.values()) >= before + 40, 90)
            held = load.accepted - accepted
            if site.valkey.answers():
                eventually(lambda: not site.statistics().running, 90)
        load.wait_accepted(5)
        load.cease()
        load.settle()
    outcome = judge(site, load.journal)
    if held:
        outcome.violate("full", f"{held} jobs were accepted by a Redis without room")
    outcome.counts["answers 503"] = load.journal.refusals[503]
    return outcome
