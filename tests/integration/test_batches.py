"""Batches on real parts: crashes, lost records, interrupted deletions, and large archives."""

from __future__ import annotations

import io
import subprocess
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from darkroom_infra.batches import Batches
from darkroom_infra.keeper import RECENT, Keeper, Sweeper
from darkroom_infra.ledger import (
    Ledger,
    batch_latents_key,
    ending,
    manifest_key,
    outputs_prefix,
)
from darkroom_infra.records import (
    BatchMember,
    BatchRecord,
    BatchSpec,
    Manifest,
    RecordsClient,
    State,
    StoredOutput,
)
from darkroom_infra.records import transitions as steps
from darkroom_infra.records.transitions import Admission
from darkroom_infra.sweeping import Sweep
from darkroom_wire.ids import member_id, new_batch_id
from darkroom_wire.jobs import Format, JobOptions, Latents, Status
from tests.batch_files import batch_file
from tests.conftest import Deployment, Servers, eventually
from tests.contract.conftest import SAFETENSORS

NOW = datetime.now(UTC)
TTL = timedelta(days=1)
NAMES = ["a", "b", "c", "d"]
FILE = batch_file(NAMES)
VALUES = len(FILE) - 4 * 1024


@pytest.fixture
def batches(records: RecordsClient, ledger: Ledger) -> Batches:
    """Its batches."""
    return Batches(records, ledger)


def make_spec(idempotency: str = "", callback: str | None = None) -> BatchSpec:
    """Make the spec of a batch of four jobs."""
    batch_id = new_batch_id()
    latents = Latents(shape=(1, 4, 8, 8), dtype="float32", bytes=1024)
    return BatchSpec(
        id=batch_id,
        owner="anna",
        created_at=NOW,
        options=JobOptions(vae="demo", callback_url=callback),
        format=Format.PNG,
        ttl=3600,
        idempotency=idempotency,
        fingerprint="print" if idempotency else "",
        members=tuple(
            BatchMember(
                id=member_id(batch_id, index),
                name=name,
                latents=latents,
                offset=VALUES + index * 1024,
            )
            for index, name in enumerate(NAMES)
        ),
    )


def accepted(batches: Batches, ledger: Ledger, **options: Any) -> BatchSpec:
    """Accept a batch as the API does."""
    spec = make_spec(**options)
    ledger.accept_batch(spec, io.BytesIO(FILE))
    assert batches.put_on_record(spec)
    return spec


def succeed(ledger: Ledger, job_id: str, content: bytes = b"picture") -> Manifest:
    """Store an output and end a job with it, in the ledger alone."""
    key = f"{outputs_prefix(job_id, 'nonce')}0.png"
    ledger.store.put(key, content)
    output = StoredOutput(
        key=key, content_type="image/png", bytes=len(content), width=8, height=8, sha256="0" * 64
    )
    manifest = ending(job_id, Status.SUCCEEDED, TTL).model_copy(update={"outputs": (output,)})
    return ledger.commit(manifest)


def read(records: RecordsClient, spec: BatchSpec) -> BatchRecord:
    """Read a batch that is on record."""
    record = records.run(steps.read_batch(spec.id))
    assert record is not None
    return record


def counts(records: RecordsClient, spec: BatchSpec) -> dict[Status, int]:
    """Count a batch's jobs by status, without those that no job has."""
    return {status: count for status, count in read(records, spec).counts.items() if count}


def states(records: RecordsClient, spec: BatchSpec) -> list[State | None]:
    """Read the states of a batch's jobs."""
    return records.run(steps.states([member.id for member in spec.members]))


def test_each_job_has_its_own_latents(batches: Batches, ledger: Ledger) -> None:
    """A job of a batch reads its values, and no others, out of the batch's file."""
    spec = accepted(batches, ledger)
    for index, job in enumerate(spec.jobs()):
        assert ledger.latents(job).endswith(FILE[VALUES + index * 1024 :][:1024])


@pytest.mark.parametrize(
    "point",
    [
        "submit.admitted",
        "submit.latents_stored",
        "submit.spec_stored",
        "submit.registered",
        "submit.recorded",
    ],
)
def test_a_repeat_after_a_crash(servers: Servers, tmp_path: Path, point: str) -> None:
    """Wherever the API died, the same submission again gives one batch with all its jobs."""
    headers = SAFETENSORS | {"Idempotency-Key": "once"}
    with servers.deploy(tmp_path, failpoints=f"{point}=kill") as deployment:
        deployment.start_api()
        with deployment.client() as client, pytest.raises(httpx.TransportError):
            client.post("/v1/batches?vae=demo", content=FILE, headers=headers)
        deployment.environment = {
            name: value
            for name, value in deployment.environment.items()
            if name != "DARKROOM_FAILPOINTS"
        }
        deployment.start_api()
        with deployment.client() as client:
            answers = [
                client.post("/v1/batches?vae=demo", content=FILE, headers=headers) for _ in range(2)
            ]
            assert [answer.status_code for answer in answers] == [202, 202]
            listed = client.get("/v1/batches").json()["results"]
            assert [batch["id"] for batch in listed] == [answers[0].json()["id"]]
            assert listed[0]["counts"]["queued"] == 4
            assert client.get("/v1/queue").json()["queued"] == 4
            jobs = client.get("/v1/jobs").json()["results"]
            assert [job["name"] for job in jobs] == NAMES[::-1]


def test_what_the_records_lost_is_found(
    deployment: Deployment, records: RecordsClient, ledger: Ledger, batches: Batches
) -> None:
    """After Redis was lost, batch, jobs, counts, ends and the idempotency key are as before."""
    spec = accepted(batches, ledger, idempotency="key")
    jobs = list(spec.jobs())
    for job in jobs[:2]:
        records.run(steps.finish(succeed(ledger, job.id)))
    deployment.flush()
    Sweeper(records, ledger).recover()
    assert counts(records, spec) == {Status.SUCCEEDED: 2, Status.QUEUED: 2}
    assert read(records, spec).spec == spec.model_copy(update={"members": ()})
    listed, _ = records.run(steps.list_batches("anna", None, 10))
    assert [record.spec.id for record in listed] == [spec.id]
    assert [record.spec for record in records.run(steps.members(spec.id, "", 10))] == jobs
    known = records.run(steps.admit("anna", "key", "print", new_batch_id(), 100, 4))
    assert known == (Admission.KNOWN, spec.id)


def test_a_rebuilt_batch_is_completed(
    deployment: Deployment, records: RecordsClient, ledger: Ledger, batches: Batches
) -> None:
    """A batch that had ended has ended after a rebuild too, when its last job did."""
    spec = accepted(batches, ledger)
    ends = [succeed(ledger, job.id).finished_at for job in spec.jobs()]
    deployment.flush()
    Sweeper(records, ledger).recover()
    finished = read(records, spec).finished_at
    assert finished is not None
    assert abs(finished - max(ends)) < timedelta(milliseconds=1)


def test_a_registration_that_was_interrupted_is_completed(
    records: RecordsClient, ledger: Ledger, batches: Batches
) -> None:
    """A batch of which some jobs are on record gets the others by the sweep, and none twice."""
    spec = make_spec()
    ledger.accept_batch(spec, io.BytesIO(FILE))
    records.run(steps.register_batch(spec))
    first, *_ = spec.jobs()
    records.run(steps.accept(first))
    records.run(steps.finish(succeed(ledger, first.id)))
    assert read(records, spec).finished_at is None, "one of four jobs is not the batch"
    sweep = Sweep(records, ledger, lambda: None)
    assert sweep.compare(NOW - RECENT).restored == 3
    assert sweep.compare(NOW - RECENT).restored == 0
    assert counts(records, spec) == {Status.SUCCEEDED: 1, Status.QUEUED: 3}
    assert records.run(steps.statistics()).depth


def test_records_that_fell_behind_follow(
    records: RecordsClient, ledger: Ledger, batches: Batches
) -> None:
    """A job of a batch that the ledger has ended, and whose end the records have lost, ends."""
    spec = accepted(batches, ledger)
    for job in spec.jobs():
        succeed(ledger, job.id)
    assert Sweep(records, ledger, lambda: None).compare(NOW - RECENT).ended == 4
    assert counts(records, spec) == {Status.SUCCEEDED: 4}


def test_a_deleted_job_stays_deleted(
    deployment: Deployment, records: RecordsClient, ledger: Ledger, batches: Batches
) -> None:
    """A job that was deleted out of its batch is not seen after a rebuild either."""
    spec = accepted(batches, ledger)
    gone = spec.members[1].id
    ledger.commit(ending(gone, Status.CANCELED, TTL))
    ledger.mark_deleted(gone)
    deployment.flush()
    Sweeper(records, ledger).recover()
    assert states(records, spec) == [State.QUEUED, State.DELETED, State.QUEUED, State.QUEUED]


def test_a_job_settles_once(records: RecordsClient, ledger: Ledger, batches: Batches) -> None:
    """A job that expires and is deleted later counts once: the others keep their latents."""
    spec = accepted(batches, ledger)
    job_ids = [member.id for member in spec.members]
    for job_id in job_ids[:3]:
        records.run(steps.finish(succeed(ledger, job_id)))
        for state in (State.EXPIRED, State.DELETED):
            assert records.run(steps.retire(job_id, state)) == "retired"
            assert records.run(steps.settle(job_id)) == ""
    Keeper(records, ledger, 3).turn()
    assert ledger.store.exists(batch_latents_key(spec.id))
    records.run(steps.finish(succeed(ledger, job_ids[3])))
    records.run(steps.retire(job_ids[3], State.EXPIRED))
    assert records.run(steps.settle(job_ids[3])) == spec.id


def test_jobs_are_not_forgotten_before_their_batch(
    deployment: Deployment,
    records: RecordsClient,
    ledger: Ledger,
    batches: Batches,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A deleted job leaves a trace as long as its latents are there: no rebuild brings it back."""
    monkeypatch.setattr(steps, "RECORD_KEPT", timedelta())
    spec = accepted(batches, ledger)
    keeper = Keeper(records, ledger, 3)
    gone = spec.members[0].id
    ledger.commit(ending(gone, Status.CANCELED, TTL))
    ledger.mark_deleted(gone)
    records.run(steps.finish(ending(gone, Status.CANCELED, TTL)))
    records.run(steps.retire(gone, State.DELETED))
    records.run(steps.settle(gone))
    keeper.turn()
    assert ledger.store.exists(manifest_key(gone))
    deployment.flush()
    Sweeper(records, ledger).recover()
    assert states(records, spec)[0] is State.DELETED
    # Once the whole batch is gone, nothing is left of any of them.
    batches.delete(read(records, spec))

    def nothing_left() -> bool:
        Keeper(records, ledger, 3).turn()
        return not list(ledger.store.list("manifests/")) and states(records, spec) == [None] * 4

    eventually(nothing_left)


def test_a_deletion_that_was_interrupted_is_finished(
    records: RecordsClient, ledger: Ledger, batches: Batches
) -> None:
    """A deletion that died in the middle is finished by the keeper, and nothing joins meanwhile."""
    spec = accepted(batches, ledger)
    for job in list(spec.jobs())[:2]:
        records.run(steps.finish(succeed(ledger, job.id)))
    records.run(steps.drop_batch(spec.id, timedelta()))
    assert records.run(steps.accept(next(spec.jobs()).model_copy(update={"id": "other"}))) == "gone"
    Sweep(records, ledger, lambda: None).compare(NOW - RECENT)
    Keeper(records, ledger, 3).turn()
    assert states(records, spec) == [State.DELETED] * 4
    assert list(ledger.store.list("inputs/")) == []
    assert list(ledger.store.list("outputs/")) == []
    assert records.run(steps.closing()) == []


def test_a_deletion_leaves_other_jobs_alone(
    records: RecordsClient, ledger: Ledger, batches: Batches
) -> None:
    """What lies beside a batch's outputs, before and behind, stays."""
    first, batch, last = (accepted(batches, ledger) for _ in range(3))
    for spec in (first, batch, last):
        for job in spec.jobs():
            records.run(steps.finish(succeed(ledger, job.id)))
    batches.delete(read(records, batch))
    left = {key.split("/")[1] for key in ledger.store.list("outputs/")}
    assert left == {job.id for spec in (first, last) for job in spec.jobs()}


def test_cancel_and_results_race(records: RecordsClient, ledger: Ledger, batches: Batches) -> None:
    """Jobs that ended while their batch was canceled keep their result; all others are canceled."""
    spec = accepted(batches, ledger)
    winner, runner, *_ = (member.id for member in spec.members)
    for job_id in (winner, runner):
        assert records.run(steps.claim(job_id, "nonce", TTL)) is not None
    succeed(ledger, winner)
    batches.cancel(read(records, spec))
    assert counts(records, spec) == {Status.SUCCEEDED: 1, Status.CANCELED: 3}
    assert not records.run(steps.extend(runner, "nonce", TTL, 0.5)), "the attempt has lost its job"


def test_the_event_of_a_batch(records: RecordsClient, ledger: Ledger, batches: Batches) -> None:
    """`batch.completed` happens once, when the last of all jobs has ended."""
    spec = accepted(batches, ledger, callback="http://127.0.0.1:9/hook")
    for job in spec.jobs():
        assert records.run(steps.take_due(10, timedelta())) == []
        records.run(steps.finish(succeed(ledger, job.id)))
    events = records.run(steps.take_due(10, TTL))
    assert [(event.about, event.event) for event in events] == [(spec.id, "batch.completed")]
    assert read(records, spec).sent == {"batch.completed": "pending"}


def test_a_batch_beside_its_workers(servers: Servers, tmp_path: Path) -> None:
    """A batch that is deleted while workers are at it leaves nothing behind."""
    with servers.deploy(tmp_path) as deployment:
        deployment.start_api()
        deployment.start_worker()
        with deployment.client() as client:
            names = [str(number) for number in range(40)]
            answer = client.post(
                "/v1/batches?vae=demo", content=batch_file(names), headers=SAFETENSORS
            )
            path = answer.headers["location"]
            client.get(path, params={"wait": 60, "finished": 2})
            assert client.delete(path).status_code == 204
            store = deployment.ledger().store
            eventually(lambda: not list(store.list("outputs/")))
            assert list(store.list("inputs/")) == []
            queue = client.get("/v1/queue").json()
            assert queue["queued"] == 0


LARGE = 48 * 1024 * 1024


def peak_memory(process: subprocess.Popen[bytes]) -> int:
    """Read the most memory that a process has ever had, in bytes."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_archives_take_no_memory(deployment: Deployment, ledger: Ledger, batches: Batches) -> None:
    """An archive that is much larger than what its download may take comes bit for bit."""
    deployment.start_api()
    spec = accepted(batches, ledger)
    spec_owner(deployment, spec)
    content = bytes(range(256)) * (LARGE // 256)
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda job: succeed(ledger, job.id, content), spec.jobs()))
    records = deployment.records()
    for manifest in ends:
        records.run(steps.finish(manifest))
    before = peak_memory(deployment.processes[0])
    path = deployment.folder / "results.zip"
    with (
        deployment.client() as client,
        path.open("wb") as file,
        client.stream("GET", f"/v1/batches/{spec.id}/results.zip") as answer,
    ):
        assert answer.status_code == 200
        for chunk in answer.iter_bytes():
            file.write(chunk)
    assert peak_memory(deployment.processes[0]) - before < LARGE
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [f"{name}.png" for name in NAMES]
        assert all(archive.read(name) == content for name in archive.namelist())


def spec_owner(deployment: Deployment, spec: BatchSpec) -> None:
    """Let the batch belong to whoever calls a service without keys."""
    import redis

    with redis.Redis.from_url(deployment.environment["DARKROOM_REDIS_URL"]) as connection:
        connection.hset(
            f"darkroom:batch:{spec.id}",
            "spec",
            spec.model_copy(update={"owner": "local", "members": ()}).model_dump_json(),
        )


def test_a_torn_archive_shows(deployment: Deployment, ledger: Ledger, batches: Batches) -> None:
    """Where an object is not what its manifest says, the transfer breaks off: nobody is fooled."""
    deployment.start_api()
    spec = accepted(batches, ledger)
    spec_owner(deployment, spec)
    records = deployment.records()
    for job in spec.jobs():
        manifest = succeed(ledger, job.id, b"x" * 100)
        records.run(steps.finish(manifest))
        ledger.store.put(manifest.outputs[0].key, b"y" * 50)
    with deployment.client() as client, pytest.raises(httpx.TransportError):
        client.get(f"/v1/batches/{spec.id}/results.zip")


def test_who_hangs_up_stops_the_archive(
    deployment: Deployment, ledger: Ledger, batches: Batches
) -> None:
    """A download that is given up half-way does no harm to the service or to the next one."""
    deployment.start_api()
    spec = accepted(batches, ledger)
    spec_owner(deployment, spec)
    records = deployment.records()
    for job in spec.jobs():
        records.run(steps.finish(succeed(ledger, job.id, b"x" * 5_000_000)))
    path = f"/v1/batches/{spec.id}/results.zip"
    with deployment.client() as client:
        with client.stream("GET", path) as answer:
            next(answer.iter_raw())
        with zipfile.ZipFile(io.BytesIO(client.get(path).content)) as archive:
            assert archive.testzip() is None


def test_many_waiters(deployment: Deployment, ledger: Ledger, batches: Batches) -> None:
    """All who wait for a batch are answered when it ends, and not before."""
    deployment.start_api()
    spec = accepted(batches, ledger)
    spec_owner(deployment, spec)
    records = deployment.records()
    answered = threading.Event()

    def wait(_: int) -> dict[str, Any]:
        with deployment.client() as client:
            document: dict[str, Any] = client.get(
                f"/v1/batches/{spec.id}", params={"wait": 60}
            ).json()
            answered.set()
            return document

    with ThreadPoolExecutor(8) as pool:
        waiting = pool.map(wait, range(8))
        *first, last = spec.jobs()
        for job in first:
            records.run(steps.finish(succeed(ledger, job.id)))
        assert not answered.is_set()
        records.run(steps.finish(succeed(ledger, last.id)))
        assert {document["status"] for document in waiting} == {"completed"}


def test_ids_of_specs_are_unique() -> None:
    """Batches and their jobs never share an id, however many are made at once."""
    made = [make_spec() for _ in range(200)]
    ids = [spec.id for spec in made] + [job.id for spec in made for job in spec.jobs()]
    assert len(set(ids)) == len(ids)
