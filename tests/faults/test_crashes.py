"""Nothing accepted is lost when a part dies."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import Deployment, Servers, eventually, make_latents
from tests.faults.conftest import Valkey
from tests.vaes import make_kl, write_catalog

HEADERS = {"Content-Type": "application/x-safetensors"}
RETRIED = {502, 503, 504}


def submit(client: httpx.Client, body: bytes, vae: str = "demo") -> str:
    """Submit until it is accepted, under one idempotency key, and return the job's id."""
    headers = {**HEADERS, "Idempotency-Key": str(uuid.uuid4())}

    def accepted() -> str | None:
        try:
            answer = client.post("/v1/jobs", params={"vae": vae}, content=body, headers=headers)
        except httpx.TransportError:
            return None
        assert answer.status_code in {202, *RETRIED}, answer.text
        return answer.json()["id"] if answer.status_code == 202 else None

    return eventually(accepted, 60) or ""


def finished(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """Wait until a job has finished, through whatever happens to the parts meanwhile."""

    def read() -> dict[str, Any] | None:
        try:
            answer = client.get(f"/v1/jobs/{job_id}", params={"wait": 5})
        except httpx.TransportError:
            return None
        assert answer.status_code in {200, *RETRIED}, answer.text
        job = answer.json()
        return job if answer.status_code == 200 and job["finished_at"] else None

    return eventually(read, 90) or {}


def test_a_killed_workers_job_succeeds_once(servers: Servers, tmp_path: Path) -> None:
    """Kill -9 in the middle of a decode: another attempt makes the picture, and only one counts."""
    make_kl(4, widths=(64, 64, 128, 128)).save_pretrained(tmp_path / "vae")
    catalog = write_catalog(tmp_path, {"slow": {"family": "sd", "source": str(tmp_path / "vae")}})
    settings = {"catalog": str(catalog), "lease_seconds": "1.5"}
    with servers.deploy(tmp_path, **settings) as darkroom:
        darkroom.start_api()
        worker = darkroom.start_worker()
        with darkroom.client() as client:
            job_id = submit(client, make_latents(1, 4, 64, 64), "slow")
            eventually(lambda: client.get(f"/v1/jobs/{job_id}").json()["progress"] > 0, 60)
            worker.kill()
            worker.wait()
            assert client.get(f"/v1/jobs/{job_id}").json()["status"] != "succeeded"
            darkroom.start_worker()
            job = finished(client, job_id)
            assert (job["status"], job["attempts"]) == ("succeeded", 2), job
        ledger = darkroom.ledger()
        manifest = ledger.find_manifest(job_id)
        assert manifest is not None
        stored = list(ledger.store.list(f"outputs/{job_id}/"))
        assert stored == [output.key for output in manifest.outputs]
        assert len(stored) == 1


def test_a_killed_valkey_loses_nothing_under_load(
    servers: Servers, valkey: Valkey, tmp_path: Path
) -> None:
    """Kill -9 of Valkey while jobs come in and run: every 202 ends in one picture."""
    with servers.deploy(tmp_path, redis_url=valkey.url, lease_seconds="3") as darkroom:
        darkroom.start_api()
        darkroom.start_worker()
        ids: list[str] = []
        with darkroom.client() as client:

            def load() -> None:
                for body in (make_latents(1, 4, 8, 8, seed=seed) for seed in range(60)):
                    ids.append(submit(client, body))  # noqa: PERF401 - watched while it grows

            loading = threading.Thread(target=load)
            loading.start()
            for count in (15, 35):
                eventually(lambda count=count: len(ids) >= count, 60)  # type: ignore[misc]
                valkey.kill()
                valkey.start()
            loading.join()
            assert len(set(ids)) == 60
            jobs = [finished(client, job_id) for job_id in ids]
        assert {job["status"] for job in jobs} == {"succeeded"}
        ledger = darkroom.ledger()
        assert len(list(ledger.store.list("manifests/"))) == 60


def test_a_worker_survives_restarts_of_valkey(
    servers: Servers, valkey: Valkey, tmp_path: Path
) -> None:
    """A worker with several slots reconnects and works on; stock Celery 5.7 exits here."""
    with servers.deploy(tmp_path, redis_url=valkey.url, lease_seconds="3") as darkroom:
        darkroom.start_api()
        worker = darkroom.start_worker(worker_threads="8")
        with darkroom.client() as client:
            for round_ in range(1, 4):
                ids = [submit(client, make_latents(1, 4, 40, 40, seed=seed)) for seed in range(12)]
                eventually(lambda: client.get("/v1/queue").json()["running"] >= 4)
                valkey.kill()
                eventually(
                    lambda round_=round_: worker.poll() is not None or losses(darkroom) >= round_  # type: ignore[misc]
                )
                assert worker.poll() is None, darkroom.logs()
                valkey.start()
                darkroom.await_ready()
                assert {finished(client, job_id)["status"] for job_id in ids} == {"succeeded"}
                assert worker.poll() is None, darkroom.logs()


def losses(darkroom: Deployment) -> int:
    """Count how often the worker has said that it lost the broker."""
    return darkroom.logs().count("Connection to broker lost")


def test_lost_records_are_rebuilt(servers: Servers, tmp_path: Path) -> None:
    """After Redis was emptied, queued jobs run and finished ones are shown as they were."""
    with servers.deploy(tmp_path) as darkroom:
        darkroom.start_api()
        worker = darkroom.start_worker()
        with darkroom.client() as client:
            done = submit(client, make_latents(1, 4, 8, 8))
            before = finished(client, done)
            canceled = _stop_and_queue(darkroom, worker, client)
            client.post(f"/v1/jobs/{canceled}/cancel").raise_for_status()
            queued = submit(client, make_latents(1, 4, 8, 8, seed=2))
            darkroom.flush()
            darkroom.await_ready()
            assert client.get(f"/v1/jobs/{canceled}").json()["status"] == "canceled"
            assert client.get(f"/v1/jobs/{queued}").json()["status"] == "queued"
            after = client.get(f"/v1/jobs/{done}").json()
            assert after["status"] == "succeeded"
            assert [output["sha256"] for output in after["outputs"]] == [
                output["sha256"] for output in before["outputs"]
            ]
            darkroom.start_worker()
            assert finished(client, queued)["status"] == "succeeded"


def _stop_and_queue(darkroom: Deployment, worker: Any, client: httpx.Client) -> str:
    """Stop the worker, and submit a job that stays queued."""
    worker.terminate()
    worker.wait(15)
    return submit(client, make_latents(1, 4, 8, 8, seed=1))
