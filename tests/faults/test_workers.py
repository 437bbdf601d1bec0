"""Nothing accepted is lost, and nothing appears twice, whatever happens to workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.outcome import nothing_wrong
from tests.faults.scenarios import points, workers
from tests.faults.site import Lab, Site


def test_killed_workers(site: Site) -> None:
    """Jobs of a worker that was killed outright are done by another, once."""
    nothing_wrong(workers.killed(site, kills=3, jobs=60))


def test_workers_killed_at_every_point(site: Site) -> None:
    """An attempt may end anywhere between claim and record: the job is done, once."""
    outcome = nothing_wrong(points.attempting(site, points.ATTEMPT, times=1))
    assert outcome.counts["kills"] == len(points.ATTEMPT)


def test_a_worker_that_was_held_up(site: Site) -> None:
    """A worker that wakes up after its lease finds its jobs taken, and changes nothing."""
    outcome = nothing_wrong(workers.held_up(site, times=1))
    assert outcome.counts["stale"]
    assert outcome.counts["refused"] >= outcome.counts["stale"]


def test_rolling_restart(site: Site) -> None:
    """Workers that are told to stop finish their jobs or hand them back, and no attempt counts."""
    nothing_wrong(workers.rolled(site, times=2))


@pytest.fixture(scope="module")
def impatient(lab: Lab) -> Iterator[Site]:
    """An installation that soon gives up: a hung decode, a lease, and a job."""
    settings = {"attempt_seconds": "2", "lease_seconds": "1", "max_attempts": "2"}
    with lab.site(**settings) as site:
        yield site


def test_poison(impatient: Site) -> None:
    """A job that kills every process is given up; the others in its batches are not harmed."""
    outcome = nothing_wrong(workers.poisoned(impatient, innocents=20))
    assert outcome.counts["harmed"] == 0


def test_hung_decode(impatient: Site) -> None:
    """A process whose decoder hangs is replaced; the job is given up, and no other is harmed."""
    nothing_wrong(workers.hung(impatient, innocents=20, deadline=2))
