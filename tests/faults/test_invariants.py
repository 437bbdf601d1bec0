"""The checker is checked: what is whole passes, and every planted violation is found."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from darkroom_infra.ledger import ending, manifest_key, outputs_prefix
from darkroom_infra.records import Manifest, StoredOutput
from darkroom_infra.records.client import PREFIX
from darkroom_wire.ids import new_id
from darkroom_wire.jobs import Status
from tests.faults.invariants import RULES, Books, Case, read_books, told_by, violations
from tests.faults.journal import Journal
from tests.faults.load import Load
from tests.faults.outcome import judge
from tests.faults.site import Site

DONE, FAILED, DELETED = (new_id() for _ in range(3))
KEY = f"{outputs_prefix(DONE, 'nonce')}0.png"


def whole() -> Case:
    """Make books and a journal in which everything is right."""
    journal = Journal()
    for key, job_id in (("a", DONE), ("b", FAILED), ("c", DELETED)):
        journal.accept(key, job_id)
    journal.delete(DELETED)
    output = StoredOutput(
        key=KEY, content_type="image/png", bytes=3, width=8, height=8, sha256="beef"
    )
    now = datetime.now(UTC)
    done = Manifest(
        job_id=DONE,
        status=Status.SUCCEEDED,
        finished_at=now,
        expires_at=now + timedelta(days=1),
        outputs=(output,),
    )
    manifests = {
        DONE: done,
        FAILED: ending(FAILED, Status.FAILED, timedelta(days=1)),
        DELETED: ending(DELETED, Status.EXPIRED, timedelta()),
    }
    journal.results = {job_id: told_by(manifests[job_id]) for job_id in (DONE, FAILED)}
    journal.callbacks = {DONE: frozenset({"job.succeeded"})}
    journal.events[DONE, "job.succeeded"] = ["one id", "one id"]
    records = {
        DONE: {"state": "succeeded", "attempts": "2"},
        FAILED: {"state": "failed", "attempts": "3"},
        DELETED: {"state": "deleted", "attempts": "0"},
    }
    books = Books(
        accepted={DONE, FAILED},
        remains={DONE, FAILED},
        manifests=manifests,
        outputs={KEY: "beef"},
        records=records,
        indexes={"line": set(), "running": set()},
    )
    return Case(journal, books)


def test_nothing_is_found_where_all_is_right() -> None:
    """Finished, failed and deleted jobs, and an attempt that was repeated, break no rule."""
    assert violations(whole()) == []


def _record(job_id: str, **fields: str) -> Callable[[Case], object]:
    return lambda case: case.books.records[job_id].update(fields)


PLANTED: dict[str, tuple[set[str], Callable[[Case], object]]] = {
    "a manifest is missing": ({"lost", "disagreeing"}, lambda c: c.books.manifests.pop(FAILED)),
    "latents are missing": ({"hollow", "uncalled_for"}, lambda c: c.books.accepted.remove(FAILED)),
    "a record is missing": ({"forgotten"}, lambda c: c.books.records.pop(FAILED)),
    "a manifest of nobody's job": (
        {"uncalled_for"},
        lambda c: c.books.manifests.update(x=ending("x", Status.CANCELED, timedelta())),
    ),
    "a result changed": (
        {"changed"},
        lambda c: c.journal.see(
            {"id": DONE, "status": "failed", "attempts": 1, "outputs": [], "error": None}
        ),
    ),
    "a finished job ran again": (
        {"changed"},
        lambda c: c.journal.see({"id": DONE, "status": "running", "attempts": 1, "outputs": []}),
    ),
    "a manifest was replaced": (
        {"untrue", "disagreeing"},
        lambda c: c.books.manifests.update({DONE: ending(DONE, Status.CANCELED, timedelta())}),
    ),
    "an output is missing": ({"unserved"}, lambda c: c.books.outputs.pop(KEY)),
    "an output has other bytes": ({"unserved"}, lambda c: c.books.outputs.update({KEY: "dead"})),
    "a job still runs": ({"stuck"}, _record(FAILED, state="running")),
    "a job is still listed": ({"stuck"}, lambda c: c.books.indexes["line"].add(DONE)),
    "a doorbell is left": ({"stuck"}, lambda c: setattr(c.books, "messages", 1)),
    "a record says otherwise": ({"disagreeing"}, _record(FAILED, state="succeeded")),
    "too many attempts": ({"overtried"}, _record(DONE, attempts="4")),
    "two jobs for one key": ({"doubled"}, lambda c: c.journal.accept("a", FAILED)),
    "a deleted job's latents are there": ({"undead"}, lambda c: c.books.remains.add(DELETED)),
    "a deleted job is shown": (
        {"undead"},
        lambda c: c.books.manifests.update(
            {DELETED: ending(DELETED, Status.CANCELED, timedelta())}
        ),
    ),
    "an answer that is none": ({"wrong"}, lambda c: c.journal.complain("500")),
    "an accepted job was not found": ({"vanished"}, lambda c: c.journal.miss(DONE)),
    "an event was never told": ({"unheard"}, lambda c: c.journal.events.clear()),
    "an event under two ids": (
        {"unheard"},
        lambda c: c.journal.events[DONE, "job.succeeded"].append("another id"),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(name: str) -> None:
    """Each way in which books and journal can be wrong is found, by its own rule."""
    case = whole()
    rules, plant = PLANTED[name]
    plant(case)
    found = {violation.rule for violation in violations(case)}
    assert rules <= found
    assert found <= rules | {"uncalled_for", "undead", "disagreeing"}


def test_every_rule_is_planted() -> None:
    """No rule goes untested."""
    assert set().union(*(rules for rules, _ in PLANTED.values())) == set(RULES)


def test_violations_are_found_in_real_books(site: Site) -> None:
    """What is planted in S3 and Redis themselves is read and found; repaired, it is gone."""
    with Load(site) as load:
        load.order(3)
        load.settle()
    assert judge(site, load.journal).violations == []
    first, second, third = load.journal.accepted
    ((key, _),) = load.journal.results[second].outputs
    store, redis = site.ledger.store, site.valkey.client
    manifest, picture = store.get(manifest_key(first)), store.get(key)
    store.delete([manifest_key(first)])
    store.put(key, b"other bytes")
    redis.rename(f"{PREFIX}job:{third}", "hidden")
    redis.zadd(f"{PREFIX}line", {third: 0})
    found = violations(Case(load.journal, read_books(site.ledger, redis)))
    redis.zrem(f"{PREFIX}line", third)
    redis.rename("hidden", f"{PREFIX}job:{third}")
    store.put(key, picture)
    store.put(manifest_key(first), manifest)
    assert {(violation.rule, violation.job) for violation in found} == {
        ("lost", first),
        ("disagreeing", first),
        ("unserved", second),
        ("forgotten", third),
        ("stuck", third),
    }
    assert judge(site, load.journal).violations == []
