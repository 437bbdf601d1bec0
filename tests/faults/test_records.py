"""Redis may die, forget, or run full: S3 knows what was accepted and how it ended."""

from __future__ import annotations

from tests.faults.outcome import nothing_wrong
from tests.faults.scenarios import records
from tests.faults.site import Lab, Site


def test_killed_valkey(site: Site) -> None:
    """Kill -9 of Valkey under load loses nothing, and every worker works on afterwards."""
    outcome = nothing_wrong(records.killed(site, kills=1))
    assert outcome.counts["workers that ended"] == 0


def test_emptied_valkey(site: Site) -> None:
    """After FLUSHALL under load the records are rebuilt: nothing is lost, no result changes."""
    nothing_wrong(records.emptied(site, times=1))


def test_valkey_that_is_emptied_while_records_are_rebuilt(site: Site) -> None:
    """A rebuild that is overtaken by another loss begins again."""
    nothing_wrong(records.emptied_twice(site, times=1))


def test_valkey_that_lost_its_last_writes(site: Site) -> None:
    """Jobs that are missing from an append-only file that was cut short are found again."""
    nothing_wrong(records.cut_short(site, times=1))


def test_recover(lab: Lab) -> None:
    """`darkroom recover` puts on record what S3 has accepted, and follows what has ended."""
    nothing_wrong(records.rebuilt(lab, jobs=60))


def test_lost_doorbells(site: Site) -> None:
    """Jobs whose message was lost are rung for again."""
    outcome = nothing_wrong(records.deaf(site, jobs=20))
    assert outcome.counts["messages"] == 20


def test_doubled_doorbells(site: Site) -> None:
    """A message that comes twice does a job once."""
    outcome = nothing_wrong(records.echoing(site, jobs=20))
    assert outcome.counts["messages"] >= 20


def test_valkey_at_its_memory_limit(site: Site) -> None:
    """A Redis without memory has submissions refused with 503, and running jobs finished."""
    assert nothing_wrong(records.out_of_memory(site)).counts["answers 503"]


def test_valkey_on_a_full_disk(site: Site) -> None:
    """A Redis that cannot write has submissions refused with 503; with more room all goes on."""
    assert nothing_wrong(records.disk_full(site)).counts["answers 503"]
