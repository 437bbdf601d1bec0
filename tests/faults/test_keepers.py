"""API and keeper may die between any two steps: what was begun is finished by a repeat."""

from __future__ import annotations

from tests.faults.outcome import nothing_wrong
from tests.faults.scenarios import callers, points
from tests.faults.site import Site


def test_api_killed_at_every_point_of_a_submission(site: Site) -> None:
    """Callers who try again under their key get one job, wherever the API died before."""
    outcome = nothing_wrong(points.submitting(site, points.SUBMIT, times=1))
    assert outcome.counts["kills"] == len(points.SUBMIT)


def test_api_killed_in_cancel_and_delete(site: Site) -> None:
    """A cancellation or deletion that was cut off is finished by a repeat, and stays done."""
    outcome = nothing_wrong(points.ending(site, points.END, times=1))
    assert outcome.counts["kills"] == len(points.END)


def test_keeper_killed_when_it_has_requeued(site: Site) -> None:
    """The next keeper goes on where a dead one stopped."""
    nothing_wrong(points.requeuing(site, times=1))


def test_keeper_killed_when_it_has_rolled_forward(site: Site) -> None:
    """A commit that nobody finishes is finished by a keeper, and by the next if that one dies."""
    nothing_wrong(points.rolling_forward(site, times=1))


def test_one_key_from_many_callers(site: Site) -> None:
    """A hundred requests at once under one idempotency key, to two APIs, make one job."""
    nothing_wrong(callers.at_once(site, callers=100))
