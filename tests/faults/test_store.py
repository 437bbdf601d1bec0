"""S3 may be away, broken or slow: nothing is accepted that it does not hold."""

from __future__ import annotations

from tests.faults.outcome import nothing_wrong
from tests.faults.scenarios import store
from tests.faults.site import Lab, Site


def test_store_in_trouble(site: Site) -> None:
    """While S3 is away or broken, submissions are refused and attempts wait; nothing is lost."""
    nothing_wrong(store.troubled(site, seconds=1, names=("away", "answering 500", "slow")))


def test_connections_to_the_store_that_break(site: Site) -> None:
    """A PUT that is cut, or whose answer is lost, neither counts nor is counted twice."""
    nothing_wrong(store.cut(site, times=1))


def test_a_store_without_conditional_put(lab: Lab) -> None:
    """What a weak store cannot promise is said by `readyz` and `darkroom doctor`."""
    assert nothing_wrong(store.weak(lab)).counts["detected"] == 2
