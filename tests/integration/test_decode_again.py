"""Decoding once more on real parts: the latents stay where they are, the options are new ones."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import darkroom
from darkroom import AsyncClient, Client
from darkroom_infra.ledger import latents_key
from darkroom_infra.records import State
from darkroom_infra.records import transitions as steps
from darkroom_wire.ids import new_id
from darkroom_wire.jobs import Job
from tests.conftest import Deployment, Servers, make_latents
from tests.contract.conftest import SAFETENSORS

LATENTS = make_latents(1, 4, 8, 8)
WAIT = {"Prefer": "wait=60"}


@pytest.fixture
def client(installation: Deployment) -> Iterator[httpx.Client]:
    """A client of a service with a worker."""
    with installation.client() as client:
        yield client


@pytest.fixture
def accepting(intake: Deployment) -> Iterator[httpx.Client]:
    """A client of a service without a worker."""
    with intake.client() as client:
        yield client


def submit(client: httpx.Client, body: bytes = LATENTS, **query: Any) -> dict[str, Any]:
    """Submit latents to the demo VAE, and wait for the job."""
    query = {"vae": "demo"} | query
    answer = client.post("/v1/jobs", params=query, content=body, headers={**SAFETENSORS, **WAIT})
    assert answer.status_code in (200, 202), answer.text
    job: dict[str, Any] = answer.json()
    return job


def again(
    client: httpx.Client, job_id: str, headers: dict[str, str] | None = None, **query: Any
) -> httpx.Response:
    """Submit a job's latents once more."""
    return client.post("/v1/jobs", params={"from": job_id} | query, headers=headers or {})


def pixels(client: httpx.Client, job: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Fetch a job's decoded tensor."""
    content = client.get(f"/v1/jobs/{job['id']}/result?redirect=false").content
    values: np.ndarray[Any, Any] = safetensors.numpy.load(content)["decoded"]
    return values


def test_another_format_of_the_same_latents(client: httpx.Client, installation: Deployment) -> None:
    """A new job with a copy of the latents, that gives the same picture in another format."""
    first = submit(client, format="png")
    second = again(client, first["id"], WAIT, format="webp", quality=50)
    job = second.json()
    assert (second.status_code, job["status"], job["format"]) == (200, "succeeded", "webp")
    assert (job["vae"], job["latents"]) == (first["vae"], first["latents"])
    assert job["id"] > first["id"]
    assert client.delete(f"/v1/jobs/{first['id']}").status_code == 204
    assert installation.ledger().store.get(latents_key(job["id"]))
    third = again(client, job["id"], WAIT, format="png").json()
    assert third["outputs"][0]["sha256"] == first["outputs"][0]["sha256"]


def test_options_are_inherited(client: httpx.Client) -> None:
    """What is not given anew is as it was; one way of scaling takes the place of another."""
    given = {
        "scaling_factor": 0.5,
        "shift_factor": 0.1,
        "format": "safetensors",
        "priority": "batch",
    }
    first = submit(client, metadata='{"a": 1}', **given)
    same = again(client, first["id"], WAIT).json()
    assert (same["priority"], same["metadata"], same["format"]) == (
        "batch",
        {"a": 1},
        "safetensors",
    )
    assert same["outputs"][0]["sha256"] == first["outputs"][0]["sha256"]
    plain = submit(client, scaling="none", format="safetensors")
    unscaled = again(client, first["id"], WAIT, scaling="none", metadata="{}").json()
    np.testing.assert_array_equal(pixels(client, unscaled), pixels(client, plain))
    assert unscaled["metadata"] == {}


def test_what_a_file_implied_is_inherited(client: httpx.Client) -> None:
    """The scaling that an old ComfyUI file stands for is not lost with the file's form."""
    values = np.random.default_rng(3).standard_normal((1, 4, 8, 8)).astype("float32")
    file = safetensors.numpy.save({"latent_tensor": values})
    first = submit(client, file, format="safetensors")
    np.testing.assert_array_equal(
        pixels(client, again(client, first["id"], WAIT).json()), pixels(client, first)
    )


def test_a_picture_is_encoded_again(client: httpx.Client) -> None:
    """The stored input of an encode job is a picture; it is not decoded."""
    file = io.BytesIO()
    noise = np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    first = client.post(
        "/v1/jobs?vae=demo&task=encode",
        content=file.getvalue(),
        headers={"Content-Type": "image/png", **WAIT},
    ).json()
    second = again(client, first["id"], WAIT).json()
    assert (second["task"], second["status"]) == ("encode", "succeeded")
    assert second["outputs"][0]["sha256"] == first["outputs"][0]["sha256"]
    refused = again(client, first["id"], task="decode")
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "task")


def test_options_are_checked_against_the_latents(accepting: httpx.Client) -> None:
    """What the VAE cannot do with these latents is refused before anything is queued."""
    job_id = submit_quickly(accepting)
    for query, field in (
        ({"vae": "flux"}, "latents"),
        ({"vae": "nope"}, "vae"),
        ({"format": "mp4"}, "format"),
        ({"quality": "101"}, "quality"),
        ({"height": "8", "width": "8"}, "height"),
        ({"shape": "1,4,8,8"}, "shape"),
        ({"colour": "red"}, "colour"),
    ):
        refused = again(accepting, job_id, **query)
        assert refused.status_code == 422, (query, refused.text)
        assert field in {fault["field"] for fault in refused.json()["errors"]}
    both = accepting.post("/v1/jobs", params={"from": job_id}, content=LATENTS, headers=SAFETENSORS)
    assert (both.status_code, both.json()["errors"][0]["field"]) == (422, "body")


def submit_quickly(client: httpx.Client) -> str:
    """Submit latents where no worker is."""
    answer = client.post("/v1/jobs?vae=demo", content=LATENTS, headers=SAFETENSORS)
    job_id: str = answer.json()["id"]
    return job_id


def test_latents_that_are_gone(accepting: httpx.Client, intake: Deployment) -> None:
    """404 for an unknown job, 410 for one that was deleted, or has expired."""
    assert again(accepting, new_id()).status_code == 404
    assert again(accepting, "none").status_code == 404
    deleted, expired, lost, canceled = (submit_quickly(accepting) for _ in range(4))
    accepting.delete(f"/v1/jobs/{deleted}")
    assert again(accepting, deleted).status_code == 410
    for job_id in (expired, canceled):
        accepting.post(f"/v1/jobs/{job_id}/cancel")
    assert again(accepting, canceled).status_code == 202
    intake.records().run(steps.retire(expired, State.EXPIRED))
    assert again(accepting, expired).status_code == 410
    intake.ledger().store.delete([latents_key(lost)])
    assert again(accepting, lost).status_code == 410


def test_the_same_request_is_the_same_job(accepting: httpx.Client) -> None:
    """An idempotency key stands for one job, one source and one set of options."""
    job_id, headers = submit_quickly(accepting), {"Idempotency-Key": str(uuid4())}
    first, second = (again(accepting, job_id, headers) for _ in range(2))
    assert first.json()["id"] == second.json()["id"] != job_id
    assert again(accepting, job_id, headers, format="jpeg").status_code == 422


def test_only_the_owner_decodes_again(servers: Servers, tmp_path: Path) -> None:
    """Another key's job is not there."""
    with servers.deploy(tmp_path, api_keys="anna:a,bert:b") as deployment:
        deployment.start_api()
        with deployment.client() as client:
            anna, bert = ({"Authorization": f"Bearer {key}"} for key in "ab")
            job_id = client.post(
                "/v1/jobs?vae=demo", content=LATENTS, headers={**SAFETENSORS, **anna}
            ).json()["id"]
            assert again(client, job_id, bert).status_code == 404
            assert again(client, job_id, anna).status_code == 202


def test_a_job_of_a_batch_is_decoded_again(client: httpx.Client) -> None:
    """The part of a batch's file that is one job's becomes a file of the new job's own."""
    seeds = (1, 2)
    parts = {
        f"n{seed}": np.random.default_rng(seed).standard_normal((1, 4, 8, 8)) for seed in seeds
    }
    file = safetensors.numpy.save({name: part.astype("float32") for name, part in parts.items()})
    batch = client.post("/v1/batches?vae=demo", content=file, headers=SAFETENSORS)
    assert batch.status_code == 202, batch.text
    members = client.get("/v1/jobs", params={"batch_id": batch.json()["id"]}).json()["results"]
    for member in members:
        done = client.get(f"/v1/jobs/{member['id']}?wait=60").json()
        job = again(client, member["id"], WAIT).json()
        assert (job["status"], job["batch_id"], job["name"]) == ("succeeded", None, None)
        assert job["outputs"][0]["sha256"] == done["outputs"][0]["sha256"]
    single = submit(client, make_latents(1, 4, 8, 8, seed=2))
    assert single["outputs"][0]["sha256"] in {
        client.get(f"/v1/jobs/{member['id']}").json()["outputs"][0]["sha256"] for member in members
    }


def test_the_clients_decode_again(installation: Deployment) -> None:
    """A handle gives another job on the same latents, synchronous and asynchronous."""
    values = np.random.default_rng(6).standard_normal((1, 4, 8, 8)).astype("float32")
    with Client(installation.api_url) as client:
        first = client.submit(values, "demo", metadata={"a": 1})
        second = first.again(format="jpeg", quality=80)
        assert second.id != first.id
        assert second.wait(60).outputs[0].content_type == "image/jpeg"
        assert second.info.metadata == {"a": 1}
        with pytest.raises(darkroom.InvalidRequestError):
            first.again("flux")
        first.delete()
        with pytest.raises(darkroom.GoneError):
            first.again()

    async def develop() -> Job:
        async with AsyncClient(installation.api_url) as client:
            handle = await client.job(second.id)
            return await (await handle.again("demo", format="png")).wait(60)

    assert asyncio.run(develop()).outputs[0].content_type == "image/png"
