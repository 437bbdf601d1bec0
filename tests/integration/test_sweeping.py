"""The sweep on real parts: what the ledger says prevails, and what belongs to nobody goes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from darkroom_infra.keeper import RECENT, Sweeper
from darkroom_infra.ledger import (
    Ledger,
    ending,
    latents_key,
    manifest_key,
    outputs_prefix,
    spec_key,
)
from darkroom_infra.records import (
    BATCH_COMPLETED,
    JobSpec,
    Manifest,
    RecordsClient,
    State,
    StoredOutput,
)
from darkroom_infra.records import transitions as steps
from darkroom_infra.records.transitions import Admission
from darkroom_infra.sweeping import MANIFEST_KEPT, Sweep
from darkroom_wire.ids import new_id
from darkroom_wire.jobs import Format, JobOptions, Latents, Status
from tests.conftest import Deployment, make_latents

NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(hours=5)
TTL = timedelta(days=1)


@pytest.fixture
def sweep(records: RecordsClient, ledger: Ledger) -> Sweep:
    """A sweep of both."""
    return Sweep(records, ledger, lambda: None)


def make_spec(moment: datetime = NOW, **fields: str) -> JobSpec:
    """Make the spec of a job that was submitted at some time."""
    return JobSpec(
        id=new_id(round(moment.timestamp() * 1e9)),
        owner="anna",
        created_at=moment,
        options=JobOptions(vae="demo"),
        format=Format.PNG,
        latents=Latents(shape=(1, 4, 8, 8), dtype="float32", bytes=1024),
        ttl=3600,
        **fields,
    )


def in_ledger(ledger: Ledger, moment: datetime = NOW, **fields: str) -> JobSpec:
    """Have the ledger accept a job."""
    spec = make_spec(moment, **fields)
    ledger.accept(spec, make_latents(1, 4, 8, 8))
    return spec


def state(records: RecordsClient, spec: JobSpec) -> State | None:
    """Read a job's state."""
    record = records.run(steps.read(spec.id))
    return record.state if record else None


def succeed(ledger: Ledger, spec: JobSpec, nonce: str) -> Manifest:
    """Store an output and end the job with it."""
    key = f"{outputs_prefix(spec.id, nonce)}0.png"
    ledger.store.put(key, b"picture")
    output = StoredOutput(
        key=key, content_type="image/png", bytes=7, width=8, height=8, sha256="0" * 64
    )
    manifest = ending(spec.id, Status.SUCCEEDED, TTL).model_copy(update={"outputs": (output,)})
    return ledger.commit(manifest)


def test_what_the_records_lost_is_found(
    records: RecordsClient, ledger: Ledger, sweep: Sweep
) -> None:
    """Jobs that only the ledger knows are on record again, as they were: queued or ended."""
    queued, done = in_ledger(ledger), in_ledger(ledger)
    succeed(ledger, done, "nonce")
    known = in_ledger(ledger)
    records.run(steps.accept(known))
    found = sweep.compare(NOW - RECENT)
    assert (found.restored, found.ended) == (2, 0)
    states = [state(records, spec) for spec in (queued, done, known)]
    assert states == [State.QUEUED, State.SUCCEEDED, State.QUEUED]
    assert sweep.compare(NOW - RECENT).restored == 0


@pytest.mark.parametrize("claimed", [False, True])
def test_records_that_fell_behind_follow(
    records: RecordsClient, ledger: Ledger, sweep: Sweep, claimed: bool
) -> None:
    """A job that the ledger has ended, and whose end the records have lost, ends."""
    spec = in_ledger(ledger)
    records.run(steps.accept(spec))
    if claimed:
        records.run(steps.claim(spec.id, "lost", timedelta(minutes=1)))
    succeed(ledger, spec, "nonce")
    assert sweep.compare(NOW - RECENT).ended == 1
    assert state(records, spec) is State.SUCCEEDED


def test_what_another_sweep_put_on_record_follows(
    records: RecordsClient, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that another sweep puts on record at the same moment is ended by whoever is first."""
    spec = in_ledger(ledger)
    succeed(ledger, spec, "nonce")
    read = ledger.spec

    def overtaken(job_id: str) -> JobSpec:
        found = read(job_id)
        records.run(steps.accept(found, rebuilding=True))
        return found

    monkeypatch.setattr(ledger, "spec", overtaken)
    Sweep(records, ledger, lambda: None).compare()
    assert state(records, spec) is State.SUCCEEDED


def test_what_ends_while_it_is_not_on_record_follows(
    records: RecordsClient, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that ends a job between the sweep's looks finds no record, and the sweep ends it."""
    spec = in_ledger(ledger)
    read = ledger.spec

    def ended_meanwhile(job_id: str) -> JobSpec:
        assert records.run(steps.finish(succeed(ledger, spec, "nonce"))) == "unknown"
        return read(job_id)

    monkeypatch.setattr(ledger, "spec", ended_meanwhile)
    Sweep(records, ledger, lambda: None).compare()
    assert state(records, spec) is State.SUCCEEDED


def test_only_what_is_recent_is_looked_at(
    records: RecordsClient, ledger: Ledger, sweep: Sweep
) -> None:
    """A sweep after a restart passes over what was safe long before; a rebuild does not."""
    old = in_ledger(ledger, NOW - timedelta(days=9))
    assert sweep.compare(NOW - RECENT).restored == 0
    assert state(records, old) is None
    assert sweep.compare().restored == 1


def test_a_rebuild_restores_idempotency_keys(records: RecordsClient, ledger: Ledger) -> None:
    """After Redis was lost, a repeated submission still finds its job."""
    spec = in_ledger(ledger, idempotency="key", fingerprint="print")
    Sweeper(records, ledger).recover()
    admission, job_id = records.run(steps.admit("anna", "key", "print", new_id(), 100))
    assert (admission, job_id) == (Admission.KNOWN, spec.id)
    assert records.run(steps.admit("anna", "key", "other", new_id(), 100))[0] is Admission.MISMATCH


def test_many_jobs_are_compared_in_pages(
    records: RecordsClient, ledger: Ledger, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No job falls between two pages."""
    monkeypatch.setattr("darkroom_infra.sweeping.PAGE", 3)
    specs = [in_ledger(ledger) for _ in range(7)]
    assert sweep.compare().restored == 7
    assert {state(records, spec) for spec in specs} == {State.QUEUED}


def test_half_accepted_submissions_are_collected(
    records: RecordsClient, ledger: Ledger, sweep: Sweep
) -> None:
    """Latents without a spec, and specs without latents, go once nobody can complete them."""
    old, whole, fresh = (make_spec(moment) for moment in (LONG_AGO, LONG_AGO, NOW))
    spec_only = make_spec(LONG_AGO)
    for spec in (old, whole, fresh):
        ledger.store.put(latents_key(spec.id), b"latents")
    for spec in (whole, spec_only):
        ledger.store.put(spec_key(spec.id), spec.model_dump_json().encode())
    records.run(steps.accept(whole))
    assert sweep.collect(NOW - RECENT).deleted == 2
    assert sorted(ledger.store.list("inputs/")) == sorted(
        [latents_key(whole.id), spec_key(whole.id), latents_key(fresh.id)]
    )


def test_outputs_of_dead_attempts_are_collected(
    records: RecordsClient, ledger: Ledger, sweep: Sweep
) -> None:
    """Only what a manifest names stays, once a job has ended; nothing of a running one goes."""
    done, canceled, running = (in_ledger(ledger, LONG_AGO) for _ in range(3))
    stray = make_spec(LONG_AGO)
    for spec in (done, canceled, running):
        records.run(steps.accept(spec))
    for spec in (done, canceled, running, stray):
        ledger.store.put(f"{outputs_prefix(spec.id, 'dead')}0.png", b"picture")
    records.run(steps.finish(succeed(ledger, done, "winner")))
    records.run(steps.finish(ledger.commit(ending(canceled.id, Status.CANCELED, TTL))))
    assert sweep.collect(NOW - RECENT).deleted == 3
    assert sorted(ledger.store.list("outputs/")) == sorted(
        [
            f"{outputs_prefix(done.id, 'winner')}0.png",
            f"{outputs_prefix(running.id, 'dead')}0.png",
        ]
    )


def test_manifests_of_forgotten_jobs_are_collected(ledger: Ledger, sweep: Sweep) -> None:
    """A manifest goes once no job of its time can be on record any more."""
    ancient, recent = (make_spec(NOW - MANIFEST_KEPT + timedelta(days=d)) for d in (-1, 1))
    for spec in (ancient, recent):
        ledger.commit(ending(spec.id, Status.CANCELED, TTL))
    sweep.collect(NOW - RECENT)
    assert list(ledger.store.list("manifests/")) == [manifest_key(recent.id)]


def test_notes_on_webhooks_of_forgotten_jobs_are_collected(ledger: Ledger, sweep: Sweep) -> None:
    """What was noted of events of a batch, or of a job that Redis lost, does not stay for ever."""
    ancient, recent = (
        new_id(round((NOW - MANIFEST_KEPT + timedelta(days=d)).timestamp() * 1e9)) for d in (-1, 1)
    )
    for about in (ancient, recent):
        ledger.note_sent(about, BATCH_COMPLETED, "delivered")
    assert sweep.collect(NOW - RECENT).deleted == 1
    assert dict(ledger.sent()) == {recent: [BATCH_COMPLETED]}


def test_a_sweep_is_due_once(deployment: Deployment, ledger: Ledger) -> None:
    """After a start of Redis one sweeper compares, and the others find it done."""
    records = deployment.records()
    spec = in_ledger(ledger)
    Sweeper(records, ledger).turn()
    assert state(records, spec) is State.QUEUED
    late = in_ledger(ledger)
    Sweeper(records, ledger).turn()
    assert state(records, late) is None, "swept twice in ten minutes"


def test_a_lost_epoch_is_a_rebuild(deployment: Deployment, ledger: Ledger) -> None:
    """Where Redis is empty, old jobs are put on record too, before anything is accepted."""
    old = in_ledger(ledger, NOW - timedelta(days=9))
    lost = RecordsClient(deployment.environment["DARKROOM_REDIS_URL"], f"{uuid4()}:")
    assert lost.epoch() is None
    Sweeper(lost, ledger).turn()
    assert lost.epoch() is not None
    assert state(lost, old) is State.QUEUED
