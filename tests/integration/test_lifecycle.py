"""The life of a job on real parts: expiry, giving up, rolling forward, waiting, stopping."""

from __future__ import annotations

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import httpx

from darkroom_infra.keeper import Keeper, Sweeper
from darkroom_infra.ledger import Ledger, ending, latents_key, manifest_key, spec_key
from darkroom_infra.records import JobSpec, RecordsClient, State
from darkroom_infra.records import transitions as steps
from darkroom_wire.ids import new_id
from darkroom_wire.jobs import Format, JobError, JobOptions, Latents, Status
from tests.conftest import Deployment, Servers, eventually, make_latents
from tests.vaes import make_kl, write_catalog

HEADERS = {"Content-Type": "application/x-safetensors"}
LEASE = timedelta(seconds=30)
NO_LEASE = timedelta(milliseconds=1)
TTL = timedelta(hours=1)
WAITERS = 500


def accept(records: RecordsClient, ledger: Ledger) -> JobSpec:
    """Accept a job as the API does."""
    spec = JobSpec(
        id=new_id(),
        owner="anna",
        created_at=datetime.now(UTC),
        options=JobOptions(vae="demo"),
        format=Format.PNG,
        latents=Latents(shape=(1, 4, 8, 8), dtype="float32", bytes=1024),
        ttl=3600,
    )
    ledger.accept(spec, make_latents(1, 4, 8, 8))
    records.run(steps.accept(spec))
    return spec


def claim(records: RecordsClient, spec: JobSpec, lease: timedelta = LEASE) -> str:
    """Claim a job, and return the nonce."""
    nonce = uuid4().hex
    assert records.run(steps.claim(spec.id, nonce, lease)) is not None
    return nonce


def state(records: RecordsClient, spec: JobSpec) -> State | None:
    """Read a job's state."""
    record = records.run(steps.read(spec.id))
    return record.state if record else None


def test_the_first_manifest_wins(records: RecordsClient, ledger: Ledger) -> None:
    """Of eight that end a job at once, one does, and all of them see the same end."""
    spec = accept(records, ledger)
    candidates = [
        ending(spec.id, Status.FAILED, TTL, JobError(type=str(n), title="", detail=""))
        for n in range(8)
    ]
    with ThreadPoolExecutor(8) as pool:
        winners = list(pool.map(ledger.commit, candidates))
    assert len({winner.model_dump_json() for winner in winners}) == 1
    assert winners[0] in candidates


def test_the_keeper_requeues_a_dead_attempt(records: RecordsClient, ledger: Ledger) -> None:
    """A job whose worker is gone is queued again, and given up when its attempts are used up."""
    spec = accept(records, ledger)
    keeper = Keeper(records, ledger, max_attempts=2)
    assert records.run(steps.begin(spec.id, claim(records, spec, NO_LEASE)))
    eventually(lambda: records.run(steps.due("running")))
    keeper.turn()
    assert state(records, spec) is State.QUEUED
    assert records.run(steps.begin(spec.id, claim(records, spec, NO_LEASE)))
    eventually(lambda: records.run(steps.due("running")))
    keeper.turn()
    record = records.run(steps.read(spec.id))
    assert record is not None
    assert record.manifest is not None
    assert record.manifest.error is not None
    assert (record.state, record.attempts) == (State.FAILED, 2)
    assert "2 attempts" in record.manifest.error.detail


def test_the_keeper_rolls_a_stale_commit_forward(records: RecordsClient, ledger: Ledger) -> None:
    """An attempt that died between announcing its result and the manifest has succeeded."""
    spec = accept(records, ledger)
    nonce = claim(records, spec)
    candidate = ending(spec.id, Status.SUCCEEDED, TTL)
    assert records.run(steps.begin_commit(nonce, NO_LEASE, candidate))
    eventually(lambda: records.run(steps.due("committing")))
    Keeper(records, ledger, 3).turn()
    assert state(records, spec) is State.SUCCEEDED
    assert ledger.find_manifest(spec.id) == candidate


def test_a_cancel_in_the_ledger_beats_a_stale_commit(
    records: RecordsClient, ledger: Ledger
) -> None:
    """Where a manifest is there already, rolling forward adopts it."""
    spec = accept(records, ledger)
    nonce = claim(records, spec)
    records.run(steps.begin_commit(nonce, NO_LEASE, ending(spec.id, Status.SUCCEEDED, TTL)))
    ledger.commit(ending(spec.id, Status.CANCELED, TTL))
    eventually(lambda: records.run(steps.due("committing")))
    Keeper(records, ledger, 3).turn()
    assert state(records, spec) is State.CANCELED


def test_expiry_deletes_for_real(records: RecordsClient, ledger: Ledger) -> None:
    """After its ttl a job is expired, and nothing but the manifest is left in S3."""
    spec = accept(records, ledger)
    ledger.store.put(f"outputs/{spec.id}/nonce/0.png", b"picture")
    manifest = ledger.commit(ending(spec.id, Status.SUCCEEDED, timedelta()))
    records.run(steps.finish(manifest))
    eventually(lambda: records.run(steps.due("endings")))
    Keeper(records, ledger, 3).turn()
    assert state(records, spec) is State.EXPIRED
    keys = list(ledger.store.list(""))
    assert keys == [manifest_key(spec.id)]


def test_an_interrupted_deletion_is_finished(records: RecordsClient, ledger: Ledger) -> None:
    """A job that is marked deleted, but whose objects are still there, loses them."""
    spec = accept(records, ledger)
    records.run(steps.finish(ledger.commit(ending(spec.id, Status.CANCELED, TTL))))
    ledger.mark_deleted(spec.id)
    records.run(steps.retire(spec.id, State.DELETED))
    assert ledger.store.exists(latents_key(spec.id))
    Keeper(records, ledger, 3).turn()
    assert not ledger.store.exists(latents_key(spec.id))
    assert not ledger.store.exists(spec_key(spec.id))


def test_a_rebuild_follows_the_ledger(
    deployment: Deployment, records: RecordsClient, ledger: Ledger
) -> None:
    """Inputs without a manifest are queued again; ended, deleted and unaccepted ones are not."""
    queued, canceled, deleted, halfway = (accept(records, ledger) for _ in range(4))
    ledger.commit(ending(canceled.id, Status.CANCELED, TTL))
    ledger.commit(ending(deleted.id, Status.CANCELED, TTL))
    ledger.mark_deleted(deleted.id)
    ledger.erase(deleted.id)
    ledger.store.delete([latents_key(halfway.id)])
    lost = RecordsClient(deployment.environment["DARKROOM_REDIS_URL"], f"{uuid4()}:")
    assert Sweeper(lost, ledger).recover().restored == 2
    assert lost.epoch() is not None
    assert [state(lost, spec) for spec in (queued, canceled, deleted, halfway)] == [
        State.QUEUED,
        State.CANCELED,
        None,
        None,
    ]


def test_results_expire_over_http(installation: Deployment) -> None:
    """With `ttl` the results are kept so many seconds; then the answer is 410."""
    with installation.client() as client:
        job = client.post(
            "/v1/jobs",
            params={"vae": "demo", "ttl": 1},
            content=make_latents(1, 4, 8, 8),
            headers={**HEADERS, "Prefer": "wait=30"},
        ).json()
        url = job["outputs"][0]["url"]
        path = f"/v1/jobs/{job['id']}"
        eventually(lambda: client.get(path).json()["status"] == "expired")
        assert client.get(f"{path}/result").status_code == 410
        eventually(lambda: httpx.get(url).status_code in (403, 404))


def test_many_waiting_clients_are_woken_at_once(intake: Deployment) -> None:
    """500 clients wait for one job; while they do, others submit; its end answers all of them."""
    body = make_latents(1, 4, 8, 8)
    limits = httpx.Limits(max_connections=WAITERS)
    with intake.client(limits=limits) as client, ThreadPoolExecutor(WAITERS) as pool:
        path = client.post("/v1/jobs?vae=demo", content=body, headers=HEADERS).headers["Location"]
        waiting = [pool.submit(client.get, path, params={"wait": 60}) for _ in range(WAITERS)]
        submitted = [submit_alone(intake, body).status_code for _ in range(20)]
        assert set(submitted) == {202}
        assert not any(answer.done() for answer in waiting)
        assert httpx.post(f"{intake.api_url}{path}/cancel").status_code == 200
        answers = [answer.result(60).json()["status"] for answer in waiting]
        assert answers == ["canceled"] * WAITERS


def submit_alone(intake: Deployment, body: bytes) -> httpx.Response:
    """Submit over a connection of its own."""
    return httpx.post(f"{intake.api_url}/v1/jobs?vae=demo", content=body, headers=HEADERS)


def test_a_stopping_api_answers_who_waits(servers: Servers, tmp_path: Path) -> None:
    """SIGTERM while a client waits: it is answered with the job as it is, not dropped."""
    with servers.deploy(tmp_path) as darkroom:
        darkroom.start_api()
        (api,) = darkroom.processes
        with darkroom.client() as client, ThreadPoolExecutor(1) as pool:
            answer = client.post(
                "/v1/jobs?vae=demo", content=make_latents(1, 4, 8, 8), headers=HEADERS
            )
            path = answer.headers["Location"]
            waiting = pool.submit(client.get, path, params={"wait": 60})
            # A second waiter that has been answered shows that the first one is waiting.
            assert httpx.get(f"{darkroom.api_url}{path}?wait=1").json()["status"] == "queued"
            api.terminate()
            answer = waiting.result(20)
            assert (answer.status_code, answer.json()["status"]) == (200, "queued")
            assert api.wait(10) in (0, -signal.SIGTERM)


def test_a_stopping_worker_hands_its_job_back(servers: Servers, tmp_path: Path) -> None:
    """SIGTERM in a long decode: the job is queued again within the grace, no attempt burned."""
    make_kl(4, widths=(64, 64, 128, 128)).save_pretrained(tmp_path / "vae")
    catalog = write_catalog(tmp_path, {"slow": {"family": "sd", "source": str(tmp_path / "vae")}})
    settings = {"catalog": str(catalog), "lease_seconds": "60", "drain_seconds": "0.5"}
    with servers.deploy(tmp_path, **settings) as darkroom:
        darkroom.start_api()
        worker = darkroom.start_worker()
        with darkroom.client() as client:
            path = client.post(
                "/v1/jobs?vae=slow", content=make_latents(1, 4, 96, 96), headers=HEADERS
            ).headers["Location"]
            eventually(lambda: client.get(path).json()["status"] == "running")
            worker.terminate()
            assert worker.wait(15) == 0
            job = client.get(path).json()
            assert (job["status"], job["attempts"]) == ("queued", 0)


def test_unusable_vaes_fail_the_job_not_the_worker(servers: Servers, tmp_path: Path) -> None:
    """A missing folder and a corrupt VAE end in failed jobs with the reason; others go on."""
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    (tmp_path / "corrupt" / "diffusion_pytorch_model.safetensors").write_bytes(b"nonsense")
    entries = {
        "missing": {"family": "sd", "source": str(tmp_path / "nowhere")},
        "corrupt": {"family": "sd", "source": str(tmp_path / "corrupt")},
    }
    catalog = str(write_catalog(tmp_path, entries))
    with servers.deploy(tmp_path, catalog=catalog) as darkroom:
        darkroom.start_api()
        darkroom.start_worker()
        with darkroom.client() as client:
            for vae, status in {
                "missing": "failed",
                "corrupt": "failed",
                "demo": "succeeded",
            }.items():
                job = client.post(
                    "/v1/jobs",
                    params={"vae": vae},
                    content=make_latents(1, 4, 8, 8),
                    headers={**HEADERS, "Prefer": "wait=60"},
                ).json()
                assert job["status"] == status, job
                if status == "failed":
                    assert job["error"]["type"].endswith("vae-unloadable")
                    assert vae in job["error"]["detail"]


def test_a_keeper_stops_when_told(records: RecordsClient, ledger: Ledger) -> None:
    """The keeper's thread ends with its program."""
    stop = threading.Event()
    thread = threading.Thread(target=Keeper(records, ledger, 3).run, args=(stop,))
    thread.start()
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
