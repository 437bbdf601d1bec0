"""Every step of a job's life, on a real Valkey."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import redis

from darkroom_infra.families import VaeFacts
from darkroom_infra.ledger import ending
from darkroom_infra.memory import MemoryNeed, WorkerMemory
from darkroom_infra.queue import DECODE_QUEUE
from darkroom_infra.records import JobSpec, RecordsClient, RecordsUnavailableError, State
from darkroom_infra.records import transitions as steps
from darkroom_infra.records.tallies import BOUNDS
from darkroom_infra.records.transitions import Admission, Claim, Requeue
from darkroom_wire.ids import new_id
from darkroom_wire.jobs import Format, JobOptions, Latents, Priority, Status, Timings
from tests.conftest import Servers, eventually

LEASE = timedelta(seconds=30)
NO_LEASE = timedelta(milliseconds=1)
TTL = timedelta(hours=1)


@pytest.fixture
def records(servers: Servers) -> Iterator[RecordsClient]:
    """Records with keys of their own, in an epoch."""
    client = RecordsClient(servers.stack.redis_url, prefix=f"{uuid4()}:")
    client.begin_epoch("test")
    yield client
    client.close()


@pytest.fixture
def bells(servers: Servers) -> Iterator[redis.Redis]:
    """Valkey itself, to look at the messages that rang."""
    connection = redis.Redis.from_url(servers.stack.redis_url, decode_responses=True)
    connection.delete(DECODE_QUEUE)
    yield connection
    connection.flushdb()
    connection.close()


def make_spec(
    priority: Priority = Priority.NORMAL, owner: str = "anna", vae: str = "demo"
) -> JobSpec:
    """Make the spec of a new job."""
    return JobSpec(
        id=new_id(),
        owner=owner,
        created_at=datetime.now(UTC),
        options=JobOptions(vae=vae, priority=priority),
        format=Format.PNG,
        latents=Latents(shape=(1, 4, 8, 8), dtype="float32", bytes=1024),
        ttl=3600,
    )


def accepted(records: RecordsClient, **options: object) -> JobSpec:
    """Put a new job on record."""
    spec = make_spec(**options)  # type: ignore[arg-type]
    assert records.run(steps.accept(spec)) == "accepted"
    return spec


def claimed(records: RecordsClient, lease: timedelta = LEASE) -> Claim:
    """Put a new job on record and claim it."""
    spec = accepted(records)
    claim = records.run(steps.claim(spec.id, uuid4().hex, lease))
    assert claim is not None
    return claim


def state(records: RecordsClient, job_id: str) -> State:
    """Read a job's state."""
    record = records.run(steps.read(job_id))
    assert record is not None
    return record.state


def succeed(records: RecordsClient, job_id: str, ttl: timedelta = TTL) -> None:
    """End a job."""
    assert records.run(steps.finish(ending(job_id, Status.SUCCEEDED, ttl))) == "finished"


def test_accept_puts_a_job_in_line(records: RecordsClient) -> None:
    """An accepted job is queued, has the spec it came with, and counts no attempt."""
    spec = accepted(records)
    record = records.run(steps.read(spec.id))
    assert record is not None
    assert (record.state, record.spec, record.attempts) == (State.QUEUED, spec, 0)
    assert record.position == 0


def test_accept_rings_once(records: RecordsClient, bells: redis.Redis) -> None:
    """The record and its doorbell come in one step: a Celery message that names the job."""
    spec = accepted(records, priority=Priority.INTERACTIVE)
    (message,) = bells.lrange(DECODE_QUEUE, 0, -1)  # type: ignore[misc]
    assert json.loads(message)["headers"]["id"] == spec.id


def test_accepting_again_changes_nothing(records: RecordsClient) -> None:
    """A repeated submission finds its job, even a running one, and leaves it alone."""
    claim = claimed(records)
    assert records.run(steps.accept(claim.spec)) == "known"
    assert state(records, claim.spec.id) is State.RUNNING


def test_no_epoch_no_acceptance(servers: Servers) -> None:
    """Records that were lost accept nothing until they are rebuilt, except the rebuild itself."""
    lost = RecordsClient(servers.stack.redis_url, prefix=f"{uuid4()}:")
    spec = make_spec()
    assert lost.run(steps.admit("anna", "", "f", spec.id, 10))[0] is Admission.RECOVERING
    assert lost.run(steps.accept(spec)) == "recovering"
    assert lost.run(steps.accept(spec, rebuilding=True)) == "accepted"


def test_one_idempotency_key_is_one_id(records: RecordsClient) -> None:
    """A key stands for the id it was first seen with, for one request, and one owner."""
    first, other = new_id(), new_id()
    admitted = records.run(steps.admit("anna", "key", "print", first, 10))
    assert admitted == (Admission.ADMITTED, first)
    again = records.run(steps.admit("anna", "key", "print", other, 10))
    assert again == (Admission.ADMITTED, first)
    assert records.run(steps.admit("anna", "key", "x", other, 10))[0] is Admission.MISMATCH
    assert records.run(steps.admit("bert", "key", "x", other, 10)) == (Admission.ADMITTED, other)
    records.run(steps.accept(make_spec().model_copy(update={"id": first})))
    assert records.run(steps.admit("anna", "key", "print", other, 10)) == (Admission.KNOWN, first)


def test_a_full_backlog_is_refused(records: RecordsClient) -> None:
    """Over the limit nothing is admitted; what is known already is still answered."""
    accepted(records)
    assert records.run(steps.admit("anna", "", "f", new_id(), 1))[0] is Admission.FULL


def test_a_job_is_claimed_once(records: RecordsClient) -> None:
    """Of two that come for a job, one gets it; a doorbell that rings twice does no harm."""
    claim = claimed(records)
    assert claim.attempts == 1
    assert records.run(steps.claim(claim.spec.id, "second", LEASE)) is None
    assert state(records, claim.spec.id) is State.RUNNING


def test_an_unknown_job_cannot_be_claimed(records: RecordsClient) -> None:
    """A message for a job that was forgotten finds nothing."""
    assert records.run(steps.claim(new_id(), "nonce", LEASE)) is None


def test_only_the_holder_extends(records: RecordsClient) -> None:
    """The lease is renewed for the nonce that holds the job, and the progress is shown."""
    claim = claimed(records)
    assert records.run(steps.extend(claim.spec.id, claim.nonce, LEASE, 0.5))
    assert not records.run(steps.extend(claim.spec.id, "another", LEASE, 0.9))
    record = records.run(steps.read(claim.spec.id))
    assert record is not None
    assert record.progress == 0.5


def test_a_dead_lease_gives_the_job_to_another(records: RecordsClient) -> None:
    """After its lease a job is queued again, and the attempt that had it can do nothing more."""
    claim = claimed(records, NO_LEASE)
    records.run(steps.begin(claim.spec.id, claim.nonce))
    (due,) = eventually(lambda: records.run(steps.due("running")))
    assert records.run(steps.requeue(due.id, due.rank, 3)) is Requeue.QUEUED
    assert not records.run(steps.extend(claim.spec.id, claim.nonce, LEASE, 0.5))
    candidate = ending(claim.spec.id, Status.SUCCEEDED, TTL)
    assert not records.run(steps.begin_commit(claim.nonce, LEASE, candidate))
    second = records.run(steps.claim(claim.spec.id, "second", LEASE))
    assert second is not None
    assert second.attempts == 2


@pytest.mark.parametrize("begun", [True, False])
def test_a_lost_attempt_is_remembered(records: RecordsClient, begun: bool) -> None:
    """Whether it counted or not, the next attempt knows that one before was lost."""
    claim = claimed(records, NO_LEASE)
    assert not claim.lost_before
    if begun:
        records.run(steps.begin(claim.spec.id, claim.nonce))
    eventually(lambda: records.run(steps.due("running")))
    assert records.run(steps.requeue(claim.spec.id, 1, 3)) is Requeue.QUEUED
    second = records.run(steps.claim(claim.spec.id, "second", LEASE))
    assert second is not None
    assert second.lost_before


def test_a_job_that_was_handed_back_was_not_lost(records: RecordsClient) -> None:
    """A worker that was told to stop is no sign against its jobs."""
    claim = claimed(records)
    assert records.run(steps.release(claim))
    second = records.run(steps.claim(claim.spec.id, "second", LEASE))
    assert second is not None
    assert not second.lost_before


def test_a_living_lease_is_respected(records: RecordsClient) -> None:
    """Nobody takes a job whose lease has not ended."""
    claim = claimed(records)
    assert records.run(steps.requeue(claim.spec.id, 1, 3)) is Requeue.ALIVE
    assert records.run(steps.due("running")) == []


def test_attempts_are_a_budget(records: RecordsClient) -> None:
    """A job whose attempts are used up is not queued again."""
    claim = claimed(records, NO_LEASE)
    records.run(steps.begin(claim.spec.id, claim.nonce))
    eventually(lambda: records.run(steps.due("running")))
    assert records.run(steps.requeue(claim.spec.id, 1, 1)) is Requeue.EXHAUSTED
    assert state(records, claim.spec.id) is State.RUNNING


def test_an_attempt_that_only_waited_does_not_count(records: RecordsClient) -> None:
    """A job whose worker died before the device had begun with it keeps its attempts."""
    claim = claimed(records, NO_LEASE)
    for _ in range(5):
        eventually(lambda: records.run(steps.due("running")))
        assert records.run(steps.requeue(claim.spec.id, 1, 1)) is Requeue.QUEUED
        record = records.run(steps.read(claim.spec.id))
        assert record is not None
        assert record.attempts == 0
        records.run(steps.claim(claim.spec.id, uuid4().hex, NO_LEASE))
    eventually(lambda: records.run(steps.due("running")))
    assert records.run(steps.requeue(claim.spec.id, 1, 1)) is Requeue.EXHAUSTED, "not for ever"


def test_only_the_holder_can_begin(records: RecordsClient) -> None:
    """A device that begins with a job that was taken away is told so."""
    claim = claimed(records, NO_LEASE)
    eventually(lambda: records.run(steps.due("running")))
    records.run(steps.requeue(claim.spec.id, 1, 3))
    records.run(steps.claim(claim.spec.id, "other", LEASE))
    assert not records.run(steps.begin(claim.spec.id, claim.nonce))


def test_handing_back_does_not_count(records: RecordsClient) -> None:
    """A job that a stopping worker hands back is queued, without an attempt used."""
    claim = claimed(records)
    assert records.run(steps.release(claim))
    record = records.run(steps.read(claim.spec.id))
    assert record is not None
    assert (record.state, record.attempts) == (State.QUEUED, 0)
    assert not records.run(steps.release(claim))


def test_committing_holds_the_candidate(records: RecordsClient) -> None:
    """A commit that stops halfway can be finished by anybody: the candidate is on record."""
    claim = claimed(records)
    candidate = ending(claim.spec.id, Status.SUCCEEDED, TTL)
    assert records.run(steps.begin_commit(claim.nonce, NO_LEASE, candidate))
    assert not records.run(steps.extend(claim.spec.id, claim.nonce, LEASE, 0.5))
    (due,) = eventually(lambda: records.run(steps.due("committing")))
    assert due.candidate == candidate
    assert records.run(steps.finish(candidate)) == "finished"
    assert records.run(steps.due("committing")) == []


@pytest.mark.parametrize("before", [State.QUEUED, State.RUNNING, State.COMMITTING])
def test_the_manifest_ends_a_job_from_any_state(records: RecordsClient, before: State) -> None:
    """What the ledger has decided holds, wherever the record stands, and stays."""
    if before is State.QUEUED:
        job_id = accepted(records).id
    else:
        claim = claimed(records)
        job_id = claim.spec.id
        if before is State.COMMITTING:
            candidate = ending(job_id, Status.SUCCEEDED, TTL)
            records.run(steps.begin_commit(claim.nonce, LEASE, candidate))
    assert state(records, job_id) is before
    assert records.run(steps.finish(ending(job_id, Status.CANCELED, TTL))) == "finished"
    assert records.run(steps.finish(ending(job_id, Status.SUCCEEDED, TTL))) == "known"
    assert state(records, job_id) is State.CANCELED
    assert records.run(steps.claim(job_id, "late", LEASE)) is None
    statistics = records.run(steps.statistics())
    assert (statistics.running, sum(statistics.depth.values()), statistics.backlog) == (0, 0, {})


def test_finishing_an_unknown_job_does_nothing(records: RecordsClient) -> None:
    """A manifest without a record leaves no record behind."""
    job_id = new_id()
    assert records.run(steps.finish(ending(job_id, Status.CANCELED, TTL))) == "unknown"
    assert records.run(steps.read(job_id)) is None


def test_retiring_settling_forgetting(records: RecordsClient) -> None:
    """Expiry goes step by step, so that it can be taken up where it was interrupted."""
    spec = accepted(records)
    assert records.run(steps.retire(spec.id, State.EXPIRED)) == "unfinished"
    succeed(records, spec.id, ttl=timedelta())
    (due,) = eventually(lambda: records.run(steps.due("endings")))
    assert not records.run(steps.forget(spec.id))
    assert records.run(steps.retire(due.id, State.EXPIRED)) == "retired"
    assert state(records, spec.id) is State.EXPIRED
    assert [job.state for job in records.run(steps.due("endings"))] == [State.EXPIRED]
    assert records.run(steps.settle(spec.id)) == ""
    assert records.run(steps.due("endings")) == []
    assert records.run(steps.forget(spec.id))
    assert records.run(steps.read(spec.id)) is None


def test_deleted_jobs_leave_the_listing(records: RecordsClient) -> None:
    """A deleted job is listed no more, and stays deleted when its time would end anyway."""
    kept, deleted = accepted(records), accepted(records)
    succeed(records, deleted.id)
    assert records.run(steps.retire(deleted.id, State.DELETED)) == "retired"
    assert records.run(steps.retire(deleted.id, State.EXPIRED)) == "known"
    page, _ = records.run(steps.list_jobs("anna", [], None, 10))
    assert [record.spec.id for record in page] == [kept.id]


def test_a_lost_bell_rings_again(records: RecordsClient, bells: redis.Redis) -> None:
    """A queued job without a message is rung for; with one, it is not."""
    spec = accepted(records, priority=Priority.INTERACTIVE)
    assert not records.run(steps.ring(spec.id, 0)), "it is not due yet"
    prefix = records._prefix
    bells.zadd(f"{prefix}rings", {spec.id: 0})
    assert not records.run(steps.ring(spec.id, 0)), "its message still waits"
    bells.delete(DECODE_QUEUE)
    bells.zadd(f"{prefix}rings", {spec.id: 0})
    assert records.run(steps.ring(spec.id, 0))
    assert bells.llen(DECODE_QUEUE) == 1


def test_priorities_order_the_line(records: RecordsClient) -> None:
    """Interactive jobs stand before normal ones, and those before batch ones."""
    order = [Priority.BATCH, Priority.NORMAL, Priority.INTERACTIVE]
    specs = [accepted(records, priority=priority) for priority in order]
    found = [records.run(steps.read(spec.id)) for spec in specs]
    assert [record.position for record in found if record] == [2, 1, 0]


def test_statistics_count_what_waits(records: RecordsClient) -> None:
    """Depth by priority and VAE follow the queue exactly."""
    accepted(records, vae="a")
    accepted(records, vae="b", priority=Priority.BATCH)
    claim = records.run(steps.claim(accepted(records, vae="b").id, "nonce", LEASE))
    assert claim is not None
    statistics = records.run(steps.statistics())
    assert statistics.depth == {Priority.INTERACTIVE: 0, Priority.NORMAL: 1, Priority.BATCH: 1}
    assert statistics.backlog == {"a": 1, "b": 1}
    assert statistics.running == 1
    assert statistics.oldest_ms is not None
    assert 0 <= statistics.oldest_ms < 60_000


def test_listing_pages_without_gaps(records: RecordsClient) -> None:
    """Pages newest first, filtered by state and owner, cover every job exactly once."""
    specs = [accepted(records) for _ in range(7)]
    accepted(records, owner="bert")
    for spec in specs[::2]:
        succeed(records, spec.id)
    seen: list[str] = []
    cursor = None
    while True:
        page, cursor = records.run(steps.list_jobs("anna", [State.SUCCEEDED], cursor, 2))
        seen += [record.spec.id for record in page]
        if cursor is None:
            break
    assert seen == [spec.id for spec in reversed(specs[::2])]


def test_presence_ends_by_itself(records: RecordsClient) -> None:
    """A worker that says nothing more is not counted; what it knew of a VAE stays known."""
    facts = {"demo": VaeFacts(latent_channels=4, spatial_factor=8)}
    records.run(steps.presence("w", LEASE, facts))
    assert records.run(steps.loaded()).loaded == {"demo"}
    records.run(steps.presence("w", NO_LEASE, facts))
    eventually(lambda: records.run(steps.statistics()).workers == 0)
    presence = records.run(steps.loaded())
    assert (presence.loaded, presence.facts) == (frozenset(), facts)


def test_needs_outlive_workers_and_budgets_do_not(records: RecordsClient) -> None:
    """What a VAE needs stays known; the memory for it is the most that a living worker has."""
    need = MemoryNeed(per_pixel=400.5, per_frame_pixel=0.0, per_result=12.0)
    for worker, budget, needs in (("large", 3 << 33, {"demo": need}), ("small", 1 << 20, {})):
        records.run(steps.presence(worker, LEASE, {}, {}, WorkerMemory(budget, needs)))
    presence = records.run(steps.loaded())
    assert (presence.needs, presence.budget) == ({"demo": need}, 3 << 33)
    for worker in ("large", "small"):
        records.run(steps.presence(worker, NO_LEASE, {}))
    eventually(lambda: records.run(steps.loaded()).budget is None)
    assert records.run(steps.loaded()).needs == {"demo": need}


def test_details_of_a_vae_are_sent_once(records: RecordsClient) -> None:
    """A worker is asked for a VAE's details until the records have the same, and they stay."""
    facts = {"demo": VaeFacts(latent_channels=4, spatial_factor=8)}
    old, new = (
        steps.VaeDetails({"a": None, "b": [scale]}, {"latents_mean": [0.1, scale]})
        for scale in (1.0, 2.5)
    )
    assert records.run(steps.details("demo")) is None
    for known in (old, new):
        call = steps.presence("w", LEASE, facts, {"demo": known})
        assert records.run(call) == {"demo"}
        records.run(steps.note_details("demo", known))
        assert records.run(call) == frozenset()
        assert records.run(steps.details("demo")) == known
    records.run(steps.presence("w", NO_LEASE, facts))
    assert records.run(steps.details("demo")) == new


def test_only_one_keeper_holds_the_lock(records: RecordsClient) -> None:
    """The lock is renewed by its holder and refused to others."""
    assert records.try_lock("keeper", "a", 30)
    assert records.try_lock("keeper", "a", 30)
    assert not records.try_lock("keeper", "b", 30)


def test_redis_away_is_one_error() -> None:
    """Foreign errors become ours at the edge."""
    with pytest.raises(RecordsUnavailableError):
        RecordsClient("redis://127.0.0.1:1/0").epoch()


def test_what_happens_is_counted(records: RecordsClient) -> None:
    """Acceptances, ends and the times of steps are counted by VAE, in the step that they count."""
    decoded, failed = accepted(records, vae="my vae"), accepted(records, vae="my vae")
    timings = Timings(queued=5.0, decode=2_000_000.0)
    success = ending(decoded.id, Status.SUCCEEDED, TTL).model_copy(update={"timings": timings})
    for _ in range(2):  # what is said twice counts once
        records.run(steps.finish(success))
        records.run(steps.finish(ending(failed.id, Status.FAILED, TTL)))
        records.run(steps.accept(decoded))
    counted = records.run(steps.read_tallies())
    assert counted.accepted == {"my vae": 2}
    assert counted.ended == {("succeeded", "my vae"): 1, ("failed", "my vae"): 1}
    queued, decode = counted.stages["queued", "my vae"], counted.stages["decode", "my vae"]
    assert (queued.seconds, queued.buckets) == (0.005, [1] + [0] * len(BOUNDS))
    assert (decode.seconds, decode.buckets) == (2000.0, [0] * len(BOUNDS) + [1])


def test_jobs_of_dead_workers_are_counted(records: RecordsClient) -> None:
    """Each time that a job is taken from a worker that died counts."""
    job = claimed(records, NO_LEASE).spec
    requeue = steps.requeue(job.id, job.options.priority.rank, 3)
    eventually(lambda: records.run(requeue) is Requeue.QUEUED)
    assert records.run(steps.read_tallies()).requeued == {"demo": 1}


def test_a_rebuild_counts_nothing(servers: Servers) -> None:
    """Jobs that a rebuild puts on record were counted when they came and when they ended."""
    lost = RecordsClient(servers.stack.redis_url, prefix=f"{uuid4()}:")
    spec = make_spec()
    lost.run(steps.accept(spec, rebuilding=True))
    succeed(lost, spec.id)
    counted = lost.run(steps.read_tallies())
    assert (counted.accepted, counted.ended, counted.stages) == ({}, {}, {})
    lost.close()
