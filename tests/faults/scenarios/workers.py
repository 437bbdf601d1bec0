"""Workers that are killed, held up, told to stop, and given latents that break them."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Collection, Sequence

import numpy as np

from darkroom_wire.problems import problem_type
from darkroom_wire.tensors import from_raw, to_safetensors
from tests.conftest import eventually
from tests.faults.load import Load
from tests.faults.nursery import POISON, STICKY
from tests.faults.outcome import Outcome, judge
from tests.faults.site import Change, Listener, Site

WATCHDOG_STATUS = 70


def killed(site: Site, kills: int, jobs: int) -> Outcome:
    """Kill -9 of workers at random moments while jobs come in and run."""
    step = max(1, jobs // (kills + 1))
    with Listener(site.valkey.url) as listener, Load(site) as load:
        load.order(jobs)
        moments = []
        for _ in range(kills):
            load.wait_finished(random.randint(1, step))
            time.sleep(random.random() / 10)
            moments.append(random.choice(site.workers).kill())
        load.settle()
    outcome = judge(site, load.journal)
    outcome.counts["kills"] = kills
    outcome.measured("requeued", requeued_after(moments, listener.changes))
    return outcome


def claims_of(jobs: Collection[str], changes: Sequence[Change]) -> list[float]:
    """Find when jobs were taken; renewed leases are announced as well, and are no claims."""
    moments, states = [], dict[str, str]()
    for change in changes:
        if change.job in jobs:
            if change.state == "running" and states.get(change.job) != "running":
                moments.append(change.moment)
            states[change.job] = change.state
    return moments


def requeued_after(kills: Sequence[float], changes: Sequence[Change]) -> list[float]:
    """Measure how long after a kill each job was queued again that ran in the killed worker.

    Which worker held a job is not known: the first kill after its claim counts, so a time may be
    too long, never too short.
    """
    times = []
    claimed: dict[str, float] = {}
    for change in changes:
        if change.state == "running":
            claimed[change.job] = change.moment
        elif change.state == "queued" and change.job in claimed:
            since = claimed.pop(change.job)
            fatal = [kill for kill in kills if since <= kill <= change.moment]
            if fatal:
                times.append(change.moment - min(fatal))
    return times


def held_up(site: Site, times: int) -> Outcome:
    """SIGSTOP of a worker until its leases are over and others have its jobs, then SIGCONT."""
    worker, *_ = site.workers
    stale = 0
    with Listener(site.valkey.url) as listener, Load(site, backlog=60) as load:
        load.order()
        for _ in range(times):
            taken: set[str] = set()
            while not taken:
                load.wait_finished(2)
                worker.signal(signal.SIGSTOP)
                stopped = len(listener.changes)
                taken = _await_requeue(listener, stopped, site.lease)
                _await_finished(listener, stopped, taken)
                worker.signal(signal.SIGCONT)
            stale += len(taken)
        load.cease()
        load.settle()
    outcome = judge(site, load.journal)
    outcome.counts["times"] = times
    outcome.counts["stale"] = stale
    outcome.counts["refused"] = len(worker.said("attempt.lost"))
    return outcome


def _await_requeue(listener: Listener, start: int, lease: float) -> set[str]:
    """Wait until the stopped worker's leases are over; return the jobs that were taken away."""

    def taken() -> set[str]:
        return {change.job for change in listener.changes[start:] if change.state == "queued"} & {
            change.job for change in listener.changes[:start] if change.state == "running"
        }

    deadline = time.monotonic() + 2 * lease + 2
    while not taken() and time.monotonic() < deadline:
        time.sleep(0.05)
    return taken()


def _await_finished(listener: Listener, start: int, jobs: set[str]) -> None:
    eventually(
        lambda: jobs <= {c.job for c in listener.changes[start:] if c.state == "succeeded"}, 90
    )


def rolled(site: Site, times: int) -> Outcome:
    """SIGTERM of one worker after the other, as in an upgrade, while jobs come in and run.

    Every other time a worker is left no time to finish, so that it hands its jobs back.
    """
    with Load(site, backlog=60) as load:
        load.order()
        for turn in range(times):
            worker = site.workers[turn % len(site.workers)]
            life = worker.life
            load.wait_finished(2)
            worker.prepare(drain_seconds="0" if turn % 4 < 2 else "1")
            worker.signal(signal.SIGTERM)
            following = worker.next_life(life)
            eventually(lambda life=following: life.said("job.ended"), 90)  # type: ignore[misc]
        load.cease()
        load.settle()
    outcome = judge(site, load.journal)
    outcome.counts["restarts"] = times
    outcome.counts["handed back"] = sum(len(w.said("attempt.handed_back")) for w in site.workers)
    for job, attempts in load.journal.attempts.items():
        if attempts > 1:
            outcome.counts["burned"] += 1
            outcome.violate("burned", f"{attempts} attempts", job)
    return outcome


def poisoned(site: Site, innocents: int) -> Outcome:
    """One job kills every process that decodes it; others of its shape wait beside it."""
    return _with_guilty(site, POISON, innocents)


def hung(site: Site, innocents: int, deadline: float) -> Outcome:
    """One job never comes out of the decoder; others of its shape wait beside it."""
    with Listener(site.valkey.url) as listener:
        outcome = _with_guilty(site, STICKY, innocents)
    claims = claims_of(outcome.guilty, listener.changes)
    for worker in site.workers:
        for life in worker.lives:
            if life.status == WATCHDOG_STATUS and life.ended is not None:
                claim = max((moment for moment in claims if moment < life.ended), default=0.0)
                outcome.measured("beyond the deadline", life.ended - claim - deadline)
                outcome.counts["replaced"] += 1
    if outcome.counts["replaced"] < site.max_attempts:
        outcome.violate("hung", f"{outcome.counts['replaced']} processes were replaced")
    return outcome


def _with_guilty(site: Site, value: float, innocents: int) -> Outcome:
    """Submit one job that breaks its process in the middle of others; it alone may fail."""
    middle = innocents // 2

    def body(number: int) -> bytes:
        return latents(value if number == middle else 0.001 * number)

    with Load(site, body=body) as load:
        load.order(innocents + 1)
        load.settle()
    outcome = judge(site, load.journal)
    manifests = [site.ledger.find_manifest(job) for job in load.journal.accepted]
    failed = [m for m in manifests if m is not None and m.error is not None]
    outcome.counts["innocents"] = innocents
    outcome.counts["harmed"] = max(0, len(failed) - 1)
    outcome.counts["tried again"] = sum(n > 1 for n in load.journal.attempts.values())
    outcome.guilty = [m.job_id for m in failed]
    if len(failed) != 1:
        outcome.violate("poison", f"{len(failed)} jobs failed, 1 should: {failed}")
    for manifest in failed:
        assert manifest.error is not None
        if manifest.error.type != problem_type("attempts-exhausted"):
            outcome.violate("poison", f"failed as {manifest.error}", manifest.job_id)
        attempts = load.journal.attempts[manifest.job_id]
        if attempts != site.max_attempts:
            outcome.violate("poison", f"failed after {attempts} attempts", manifest.job_id)
    return outcome


def latents(first: float) -> bytes:
    """Make latents that begin with a value."""
    values = np.zeros((1, 4, 4, 4), "float32")
    values[0, 0, 0, 0] = first
    return to_safetensors([from_raw(values.tobytes(), values.shape, "float32")])
