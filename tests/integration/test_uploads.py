"""Uploads on real parts: straight to the store, checked like a body, copied, decoded."""

from __future__ import annotations

import asyncio
import io
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import psutil
import pytest
import safetensors.numpy
from PIL import Image

from darkroom import AsyncClient, Client
from darkroom_infra.embedded.ports import free_ports
from darkroom_infra.ledger import UploadSpec, latents_key, upload_key, upload_spec_key
from darkroom_infra.sweeping import Sweep
from darkroom_wire.ids import new_id
from darkroom_wire.jobs import Job
from darkroom_wire.tensors import from_raw, to_safetensors
from tests.conftest import Deployment, Servers, make_latents
from tests.contract.conftest import RAW, SAFETENSORS

LATENTS = make_latents(1, 4, 8, 8)
WAIT = {"Prefer": "wait=60"}
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def deployment(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An API and a worker that take small bodies and large uploads."""
    with servers.deploy(
        tmp_path_factory.mktemp("uploads"),
        max_latents_bytes="100000",
        max_upload_bytes="400000000",
        max_pixels="4194304",
    ) as deployment:
        deployment.start_api()
        deployment.start_worker()
        yield deployment


@pytest.fixture
def client(deployment: Deployment) -> Iterator[httpx.Client]:
    """A client of it."""
    with deployment.client() as client:
        yield client


def announce(client: httpx.Client, size: int) -> dict[str, Any]:
    """Announce an upload."""
    answer = client.post("/v1/uploads", params={"bytes": size})
    assert answer.status_code == 201, answer.text
    upload: dict[str, Any] = answer.json()
    return upload


def upload(client: httpx.Client, content: bytes) -> str:
    """Write a file straight to the store, and return the upload's id."""
    announced = announce(client, len(content))
    assert httpx.put(announced["url"], content=content, timeout=60).status_code == 200
    upload_id: str = announced["id"]
    return upload_id


def submit(
    client: httpx.Client, upload_id: str, headers: dict[str, str] | None = None, **query: Any
) -> httpx.Response:
    """Submit an upload to the demo VAE."""
    query = {"vae": "demo", "upload": upload_id} | query
    return client.post("/v1/jobs", params=query, headers=headers or {})


def sent(
    client: httpx.Client, body: bytes, headers: dict[str, str], **query: Any
) -> httpx.Response:
    """Submit the same as a body."""
    return client.post("/v1/jobs", params={"vae": "demo"} | query, content=body, headers=headers)


def digests(answer: httpx.Response) -> list[str]:
    """Give the digests of a finished job's outputs."""
    job = answer.json()
    assert (answer.status_code, job["status"]) == (200, "succeeded"), job
    return [output["sha256"] for output in job["outputs"]]


def test_an_announcement(client: httpx.Client) -> None:
    """A link for exactly that file, for an hour."""
    announced = announce(client, 1000)
    assert set(announced) == {"id", "url", "method", "bytes", "expires_at"}
    assert (announced["method"], announced["bytes"]) == ("PUT", 1000)
    left = datetime.fromisoformat(announced["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=59) < left <= timedelta(hours=1)


@pytest.mark.parametrize("size", [4, 6])
def test_the_link_takes_only_the_announced_size(client: httpx.Client, size: int) -> None:
    """The store refuses a file of another size, and one of which the size is not told."""
    announced = announce(client, 5)
    assert httpx.put(announced["url"], content=bytes(size)).status_code == 403
    assert httpx.put(announced["url"], content=iter([bytes(5)])).status_code == 403
    assert submit(client, announced["id"]).status_code == 409


@pytest.mark.parametrize("kind", ["named", "values", "ComfyUI", "old ComfyUI"])
def test_an_upload_is_decoded_as_a_body_is(client: httpx.Client, kind: str) -> None:
    """Every form of latents gives the same picture from the store as from a body."""
    values = np.random.default_rng(1).standard_normal((2, 4, 8, 8)).astype("float16")
    query: dict[str, Any] = {}
    headers = SAFETENSORS
    match kind:
        case "named":
            body = safetensors.numpy.save({"any name": values}, {"a": "note"})
        case "values":
            body, headers = values.tobytes(), RAW
            query = {"shape": "2,4,8,8", "dtype": "float16"}
        case _:
            marker = {"latent_format_version_0": np.zeros(0, "float16")}
            body = safetensors.numpy.save(
                {"latent_tensor": values} | (marker if kind == "ComfyUI" else {})
            )
    as_body = sent(client, body, {**headers, **WAIT}, **query)
    as_upload = submit(client, upload(client, body), WAIT, **query)
    assert digests(as_upload) == digests(as_body)
    assert as_upload.json()["latents"] == as_body.json()["latents"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "floats", "uint8"])
def test_pictures_are_encoded_as_bodies_are(client: httpx.Client, kind: str) -> None:
    """Every form of pixels gives the same latents from the store as from a body.

    A tensor that is named as pictures' files are inside of the service is still a tensor.
    """
    pixels = np.random.default_rng(2).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    headers = SAFETENSORS
    if kind == "floats":
        body = safetensors.numpy.save(
            {"picture": (pixels.transpose(2, 0, 1)[None] / 255 * 2 - 1).astype("float32")}
        )
    elif kind == "uint8":
        body = safetensors.numpy.save({"picture": pixels[None]})
    else:
        file = io.BytesIO()
        # More before the size than is ever read at first: colour profiles may be long.
        more = {"icc_profile": bytes(300_000)} if kind == "JPEG" else {}
        Image.fromarray(pixels).save(file, kind, **more)
        body = file.getvalue()
        headers = {"Content-Type": f"image/{kind.lower()}"}
    if len(body) > 100_000:  # too large for a body here
        small = io.BytesIO()
        Image.fromarray(pixels).save(small, kind)
        as_body = sent(client, small.getvalue(), {**headers, **WAIT}, task="encode")
    else:
        as_body = sent(client, body, {**headers, **WAIT}, task="encode")
    as_upload = submit(client, upload(client, body), WAIT, task="encode")
    assert digests(as_upload) == digests(as_body)
    assert as_upload.json()["latents"] == as_body.json()["latents"]


def test_an_upload_is_used_more_than_once(client: httpx.Client, deployment: Deployment) -> None:
    """Several jobs are made of one upload, each with a copy of its own."""
    upload_id = upload(client, LATENTS)
    jobs = [submit(client, upload_id, WAIT, format=name) for name in ("png", "jpeg")]
    assert len({answer.json()["id"] for answer in jobs}) == 2
    for answer in jobs:
        assert client.delete(f"/v1/jobs/{answer.json()['id']}").status_code == 204
    assert deployment.ledger().store.exists(upload_key(upload_id))


def test_the_same_request_is_the_same_job(client: httpx.Client) -> None:
    """Under one key the same content is one job, uploaded again too; another one is refused."""
    headers = {"Idempotency-Key": str(uuid4())}
    first, again = (submit(client, upload(client, LATENTS), headers) for _ in range(2))
    assert first.json()["id"] == again.json()["id"]
    other = upload(client, make_latents(1, 4, 8, 8, seed=1))
    assert submit(client, other, headers).status_code == 422
    assert submit(client, upload(client, LATENTS), headers, format="jpeg").status_code == 422


def damaged(change: str) -> bytes:
    """Make a file that is not what it says."""
    match change:
        case "no safetensors":
            return b"x" * 2000
        case "cut off":
            return LATENTS[:-1]
        case "too long":
            return LATENTS + b"x"
        case "endless header":
            return struct.pack("<Q", 1 << 40) + bytes(100)
        case "header cut off":
            return LATENTS[:20]
        case "several tensors":
            values = np.zeros((1, 4, 8, 8), np.float32)
            return safetensors.numpy.save({"a": values, "b": values})
        case "float64":
            return safetensors.numpy.save({"a": np.zeros((1, 4, 8, 8))})
        case _:
            return b"x"


@pytest.mark.parametrize(
    "change",
    ["no safetensors", "cut off", "too long", "endless header", "header cut off",
     "several tensors", "float64", "one byte"],
)  # fmt: skip
def test_what_is_not_latents_is_refused(
    client: httpx.Client, deployment: Deployment, change: str
) -> None:
    """The content is refused before anything is queued or copied, with the words for a body."""
    before = set(deployment.ledger().store.list("inputs/"))
    body = damaged(change)
    refused = submit(client, upload(client, body))
    as_body = sent(client, body, SAFETENSORS)
    assert (refused.status_code, refused.json()["errors"]) == (422, as_body.json()["errors"])
    assert set(deployment.ledger().store.list("inputs/")) == before


def test_what_does_not_fit_is_refused(client: httpx.Client) -> None:
    """Channels, options and pixels are checked as those of a body are."""
    channels = submit(client, upload(client, make_latents(1, 16, 8, 8)))
    assert (channels.status_code, channels.json()["errors"][0]["field"]) == (422, "latents")
    large = submit(client, upload(client, make_latents(1, 4, 300, 300)))
    assert large.status_code == 413
    assert submit(client, upload(client, LATENTS), format="mp4").status_code == 422
    no_picture = submit(client, upload(client, b"x" * 100), task="encode")
    assert no_picture.status_code == 422
    unknown = submit(client, new_id(), vae="nope")
    assert (unknown.status_code, unknown.json()["errors"][0]["field"]) == (422, "vae")


def test_bad_requests(client: httpx.Client) -> None:
    """Sizes that cannot be, needless bodies, and two sources at once are named."""
    for size, status in ((0, 422), (-1, 422), ("many", 422), (400_000_001, 413), (10**30, 413)):
        answer = client.post("/v1/uploads", params={"bytes": size})
        assert answer.status_code == status, answer.text
        assert answer.json()["errors"][0]["field"] == "bytes"
    assert client.post("/v1/uploads?bytes=1&name=x").json()["errors"][0]["field"] == "name"
    assert client.post("/v1/uploads?bytes=1", content=b"x").json()["errors"][0]["field"] == "body"
    upload_id = upload(client, LATENTS)
    both = client.post(
        "/v1/jobs",
        params={"vae": "demo", "upload": upload_id},
        content=LATENTS,
        headers=SAFETENSORS,
    )
    assert (both.status_code, both.json()["errors"][0]["field"]) == (422, "body")
    assert submit(client, upload_id, **{"from": new_id()}).status_code == 422


def test_a_size_need_not_be_told(client: httpx.Client) -> None:
    """A link without a size takes a file of any, and a job can be made of it."""
    announced = client.post("/v1/uploads").json()
    assert announced["bytes"] is None
    assert httpx.put(announced["url"], content=LATENTS).status_code == 200
    assert submit(client, announced["id"], WAIT).json()["status"] == "succeeded"


def test_an_upload_over_the_limit_is_refused(servers: Servers, tmp_path: Path) -> None:
    """What no link could refuse is refused, and deleted, when a job is to be made of it."""
    with servers.deploy(tmp_path, max_upload_bytes=str(len(LATENTS) - 1)) as deployment:
        deployment.start_api()
        with deployment.client() as client:
            announced = client.post("/v1/uploads").json()
            assert httpx.put(announced["url"], content=LATENTS).status_code == 200
            refused = submit(client, announced["id"])
            assert (refused.status_code, refused.json()["errors"][0]["field"]) == (413, "upload")
            assert submit(client, announced["id"]).status_code == 409


def test_uploads_that_are_not_there(client: httpx.Client, deployment: Deployment) -> None:
    """404 for an unknown one, 409 before it is written, 422 if it is of another size."""
    assert submit(client, "nonsense").status_code == 404
    assert submit(client, new_id()).status_code == 404
    early = announce(client, 5)
    assert submit(client, early["id"]).status_code == 409
    deployment.ledger().store.put(upload_key(early["id"]), b"longer than that")
    wrong = submit(client, early["id"])
    assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "upload")


def test_a_replaced_upload_is_not_copied(client: httpx.Client, deployment: Deployment) -> None:
    """What is copied is what was checked, although the link can be used again meanwhile."""
    store = deployment.ledger().store
    checked = store.look(upload_key(upload(client, LATENTS)))
    store.put(checked.key, b"x" * len(LATENTS))
    with pytest.raises(FileNotFoundError):
        store.copy(checked, "inputs/copy")
    assert not store.exists("inputs/copy")


def test_a_damaged_copy_fails_its_job(servers: Servers, tmp_path: Path) -> None:
    """A job whose stored object is not what its spec says fails with that reason, at once."""
    with servers.deploy(tmp_path) as deployment:
        deployment.start_api()
        with deployment.client() as client:
            job_id = submit(client, upload(client, LATENTS)).json()["id"]
            deployment.ledger().store.put(latents_key(job_id), LATENTS[:-1])
            deployment.start_worker()
            job = client.get(f"/v1/jobs/{job_id}?wait=60").json()
    assert (job["status"], job["attempts"]) == ("failed", 1)
    assert job["error"]["type"].endswith("invalid-latents")


def make_upload(deployment: Deployment, age: timedelta, *, written: bool = True) -> str:
    """Put an upload into the store that was announced some time ago."""
    spec = UploadSpec(
        id=new_id(round((NOW - age).timestamp() * 1e9)), owner="local", bytes=len(LATENTS)
    )
    deployment.ledger().announce_upload(spec)
    if written:
        deployment.ledger().store.put(upload_key(spec.id), LATENTS)
    return spec.id


def test_uploads_expire(client: httpx.Client, deployment: Deployment) -> None:
    """Jobs are made of an upload for a day; one that was never written is gone with its link."""
    hours = {age: make_upload(deployment, timedelta(hours=age)) for age in (23, 25)}
    assert submit(client, hours[23]).status_code == 202
    assert submit(client, hours[25]).status_code == 410
    unwritten = make_upload(deployment, timedelta(hours=2), written=False)
    assert submit(client, unwritten).status_code == 410


def test_old_uploads_are_collected(client: httpx.Client, deployment: Deployment) -> None:
    """The sweep deletes uploads of which no job can be made any more; no job loses its copy."""
    young, old = (make_upload(deployment, timedelta(hours=age)) for age in (23, 26))
    unwritten = make_upload(deployment, timedelta(days=3), written=False)
    job = submit(client, young, WAIT).json()
    ledger = deployment.ledger()
    Sweep(deployment.records(), ledger, lambda: None).collect(NOW - timedelta(days=2))
    left = set(ledger.store.list("uploads/"))
    assert {upload_key(young), upload_spec_key(young)} <= left
    assert not {upload_key(old), upload_spec_key(old), upload_spec_key(unwritten)} & left
    assert submit(client, unwritten).status_code == 410
    ledger.store.delete([upload_key(young)])
    again = client.post("/v1/jobs", params={"from": job["id"]}, headers=WAIT)
    assert digests(again) == [output["sha256"] for output in job["outputs"]]


def test_uploads_have_an_owner(servers: Servers, tmp_path: Path) -> None:
    """Another key's upload is not there; without a key there is none."""
    with servers.deploy(tmp_path, api_keys="anna:a,bert:b") as deployment:
        deployment.start_api()
        with deployment.client() as client:
            anna, bert = ({"Authorization": f"Bearer {key}"} for key in "ab")
            assert client.post("/v1/uploads?bytes=5").status_code == 401
            announced = client.post(
                "/v1/uploads", params={"bytes": len(LATENTS)}, headers=anna
            ).json()
            httpx.put(announced["url"], content=LATENTS)
            assert submit(client, announced["id"], bert).status_code == 404
            assert submit(client, announced["id"], anna).status_code == 202


def test_the_service_never_holds_an_upload(servers: Servers, tmp_path: Path) -> None:
    """A file larger than any body becomes a job without passing through the service's memory."""
    size = 128 << 20
    shape = (size // (4 * 64 * 64 * 4), 4, 64, 64)
    body = to_safetensors([from_raw(bytes(size), shape, "float32")])
    with servers.deploy(tmp_path, max_pixels=str(1 << 40)) as deployment:
        deployment.start_api()
        process = psutil.Process(deployment.processes[0].pid)
        with deployment.client() as client:
            submit(client, upload(client, LATENTS))
            upload_id = upload(client, body)
            before = process.memory_info().rss
            accepted = submit(client, upload_id)
            assert process.memory_info().rss - before < size // 4
            assert accepted.status_code == 202, accepted.text
            copied = deployment.ledger().store.look(latents_key(accepted.json()["id"]))
            assert copied.size == len(body)


@pytest.mark.parametrize("form", ["array", "file", "picture"])
def test_the_client_uploads_what_is_large(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Above a size the client writes to the store by itself: no limit of bodies is in its way."""
    monkeypatch.setattr("darkroom._flows.UPLOAD_OVER", 100_000)
    values = np.random.default_rng(3).standard_normal((8, 4, 32, 32)).astype("float32")
    with Client(deployment.api_url) as client:
        match form:
            case "array":
                job = client.submit(values, "demo")
            case "file":
                file = tmp_path / "latents.safetensors"
                file.write_bytes(safetensors.numpy.save({"some": values}))
                job = client.submit(file, "demo")
            case _:
                pixels = np.random.default_rng(4).integers(0, 256, (256, 256, 3), dtype=np.uint8)
                job = client.submit(Image.fromarray(pixels), "demo", task="encode")
        assert job.info.latents.bytes > 100_000
        assert job.wait(60).status == "succeeded"


def test_the_asynchronous_client_uploads_too(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`AsyncClient` goes the same way."""
    monkeypatch.setattr("darkroom._flows.UPLOAD_OVER", 100_000)
    values = np.zeros((8, 4, 32, 32), np.float32)

    async def develop() -> Job:
        async with AsyncClient(deployment.api_url) as client:
            return await (await client.submit(values, "demo")).wait(60)

    assert asyncio.run(develop()).status == "succeeded"


def test_a_store_out_of_reach(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the store cannot be reached, or takes less, the client sends a body."""
    monkeypatch.setattr("darkroom._flows.UPLOAD_OVER", 100)
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    for settings in ({"s3_public_endpoint_url": nowhere}, {"max_upload_bytes": "10"}):
        with servers.deploy(tmp_path, **settings) as deployment:
            deployment.start_api()
            with Client(deployment.api_url) as client:
                assert client.submit(LATENTS, "demo").status == "queued"
