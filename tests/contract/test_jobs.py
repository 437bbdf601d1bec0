"""The HTTP contract for single jobs, over real HTTP."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from darkroom_infra.settings import hash_key
from tests.conftest import Deployment, Servers, eventually, make_latents
from tests.contract.conftest import RAW, SAFETENSORS

LATENTS = make_latents(1, 4, 8, 8)
WAIT = {**SAFETENSORS, "Prefer": "wait=60"}
JOB_KEYS = [
    "id",
    "status",
    "vae",
    "format",
    "priority",
    "latents",
    "created_at",
    "started_at",
    "finished_at",
    "expires_at",
    "attempts",
    "queue_position",
    "progress",
    "outputs",
    "error",
    "timings",
    "provenance",
    "batch_id",
    "name",
    "metadata",
    "callback",
]


def submit(
    client: httpx.Client,
    body: bytes = LATENTS,
    headers: dict[str, str] | None = None,
    **query: Any,
) -> httpx.Response:
    """Submit latents to the demo VAE."""
    return client.post(
        "/v1/jobs", params={"vae": "demo"} | query, content=body, headers=headers or SAFETENSORS
    )


def test_accepted_work(accepting: httpx.Client) -> None:
    """202 names the job, where it is and when to ask again; the document is the contract's."""
    answer = submit(accepting)
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert int(answer.headers["retry-after"]) >= 1
    assert list(job) == JOB_KEYS
    assert job["latents"] == {"shape": [1, 4, 8, 8], "dtype": "float32", "bytes": 1024}
    assert (job["status"], job["attempts"], job["progress"]) == ("queued", 0, 0.0)
    assert isinstance(job["queue_position"], int)
    assert accepting.get(answer.headers["location"]).json()["id"] == job["id"]


def test_ids_sort_by_time(accepting: httpx.Client) -> None:
    """Later jobs have greater ids."""
    ids = [submit(accepting).json()["id"] for _ in range(5)]
    assert ids == sorted(ids)


def test_every_answer_has_a_request_id(accepting: httpx.Client) -> None:
    """The caller's id is given back where it is sane, else there is a new one."""
    given = accepting.get("/healthz", headers={"X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    insane = accepting.get("/nowhere", headers={"X-Request-Id": "a b"})
    assert uuid.UUID(insane.headers["x-request-id"])


def test_raw_bodies_make_the_same_picture(working: httpx.Client) -> None:
    """Raw values and a safetensors file of them are the same latents."""
    values = np.random.default_rng(1).standard_normal((1, 4, 8, 8)).astype("float16")
    file = safetensors.numpy.save({"any name": values})
    query = {"shape": ["1", "4", "8", "8"], "dtype": "float16"}
    jobs = [
        submit(working, file, WAIT).json(),
        submit(working, values.tobytes(), {**RAW, "Prefer": "wait=60"}, **query).json(),
        submit(
            working,
            values.tobytes(),
            {**RAW, "Prefer": "wait=60"},
            shape="1,4,8,8",
            dtype="float16",
        ).json(),
    ]
    assert len({job["outputs"][0]["sha256"] for job in jobs}) == 1
    assert {job["latents"]["dtype"] for job in jobs} == {"float16"}


def test_prefer_wait(working: httpx.Client, accepting: httpx.Client) -> None:
    """`Prefer: wait=N` gives 200 with the finished job in time, else 202; applied either way."""
    done = submit(working, headers={**SAFETENSORS, "Prefer": "respond-async, wait=60"})
    assert (done.status_code, done.json()["status"]) == (200, "succeeded")
    assert done.headers["preference-applied"] == "wait=60"
    pending = submit(accepting, headers={**SAFETENSORS, "Prefer": "wait=0"})
    assert (pending.status_code, pending.json()["status"]) == (202, "queued")
    assert pending.headers["preference-applied"] == "wait=0"


def test_options_come_back(working: httpx.Client) -> None:
    """What was asked for is in the document: priority, metadata, ttl as `expires_at`."""
    metadata = {"prompt": "a darkroom", "seed": 7, "nested": {"ü": [1, None]}}
    job = submit(
        working, headers=WAIT, priority="interactive", ttl=120, metadata=json.dumps(metadata)
    ).json()
    assert (job["priority"], job["metadata"]) == ("interactive", metadata)
    finished, expires = (datetime.fromisoformat(job[key]) for key in ("finished_at", "expires_at"))
    assert expires - finished == timedelta(seconds=120)
    assert set(job["timings"]) == {"queued", "fetch", "decode", "encode", "store"}
    assert all(value >= 0 for value in job["timings"].values())
    provenance = job["provenance"]
    assert (provenance["class"], provenance["method"]) == ("AutoencoderTiny", "whole")
    assert provenance["versions"]["torch"]


@pytest.mark.parametrize(
    ("chosen", "kind", "decoded_as"),
    [
        ("png", "image/png", "PNG"),
        ("jpeg", "image/jpeg", "JPEG"),
        ("webp", "image/webp", "WEBP"),
        ("safetensors", "application/x-safetensors", None),
    ],
)
def test_formats(working: httpx.Client, chosen: str, kind: str, decoded_as: str | None) -> None:
    """A batch gives one picture each, or one tensor; links, sizes and hashes tell the truth."""
    body = make_latents(2, 4, 8, 12)
    job = submit(working, body, WAIT, format=chosen).json()
    assert job["status"] == "succeeded", job
    assert len(job["outputs"]) == (2 if decoded_as else 1)
    for index, output in enumerate(job["outputs"]):
        stored = httpx.get(output["url"])
        assert stored.headers["content-type"] == output["content_type"] == kind
        assert (output["width"], output["height"]) == (96, 64)
        assert output["bytes"] == len(stored.content)
        assert output["sha256"] == hashlib.sha256(stored.content).hexdigest()
        if decoded_as:
            picture = Image.open(io.BytesIO(stored.content))
            assert (picture.format, picture.size) == (decoded_as, (96, 64))
        else:
            tensors = safetensors.numpy.load(stored.content)
            assert tensors["decoded"].shape == (2, 3, 64, 96)
        path = f"/v1/jobs/{job['id']}/result"
        direct = working.get(path, params={"index": index, "redirect": "false"})
        assert (direct.status_code, direct.content) == (200, stored.content)
        redirect = working.get(path, params={"index": index})
        assert redirect.status_code == 302
        assert httpx.get(redirect.headers["location"]).content == stored.content
    assert working.get(f"/v1/jobs/{job['id']}/result?index=9").status_code == 404


def test_quality_counts(working: httpx.Client) -> None:
    """A lower quality makes a smaller file."""
    sizes = [
        submit(working, headers=WAIT, format="jpeg", quality=quality).json()["outputs"][0]["bytes"]
        for quality in (20, 95)
    ]
    assert sizes[0] < sizes[1]


def test_comfyui_files(accepting: httpx.Client) -> None:
    """A `.latent` file is one tensor, with the empty one that marks the newer version or not."""
    values = np.zeros((1, 4, 8, 8), "float32")
    old = safetensors.numpy.save({"latent_tensor": values})
    marked = {"latent_tensor": values, "latent_format_version_0": np.zeros(0, "float32")}
    for body in (old, safetensors.numpy.save(marked)):
        answer = submit(accepting, body)
        assert answer.status_code == 202, answer.text
        assert answer.json()["latents"]["shape"] == [1, 4, 8, 8]


def test_one_key_is_one_job(accepting: httpx.Client) -> None:
    """Same key and request, same job, quoted or bare; another request under it is refused."""
    key = str(uuid.uuid4())
    first = submit(accepting, headers={**SAFETENSORS, "Idempotency-Key": key})
    again = submit(accepting, headers={**SAFETENSORS, "Idempotency-Key": f'"{key}"'})
    assert first.status_code == again.status_code == 202
    assert first.json()["id"] == again.json()["id"]
    other = submit(
        accepting, make_latents(1, 4, 8, 8, seed=9), {**SAFETENSORS, "Idempotency-Key": key}
    )
    assert other.status_code == 422
    options = submit(accepting, headers={**SAFETENSORS, "Idempotency-Key": key}, format="webp")
    assert options.status_code == 422
    assert options.json()["errors"][0]["field"] == "Idempotency-Key"


def test_one_key_in_parallel(accepting: httpx.Client) -> None:
    """Twenty requests under one key at once make one job."""
    headers = {**SAFETENSORS, "Idempotency-Key": str(uuid.uuid4())}
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: submit(accepting, headers=headers), range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_waiting_returns_when_it_ends(accepting: httpx.Client) -> None:
    """A reader that waits is answered by the end of the job, not by the end of its time."""
    path = submit(accepting).headers["location"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(accepting.get, path, params={"wait": 60})
        assert accepting.post(f"{path}/cancel").status_code == 200
        assert waiting.result(30).json()["status"] == "canceled"
    assert accepting.get(path, params={"wait": 60}).json()["status"] == "canceled"


def test_cancel_stays(accepting: httpx.Client) -> None:
    """A canceled job has no result and cannot be canceled again."""
    path = submit(accepting).headers["location"]
    assert accepting.get(f"{path}/result").status_code == 409
    job = accepting.post(f"{path}/cancel").json()
    assert (job["status"], job["error"]["type"].rpartition(":")[2]) == ("canceled", "canceled")
    assert accepting.post(f"{path}/cancel").status_code == 409
    assert accepting.get(f"{path}/result").status_code == 409


@pytest.mark.parametrize("unfinished", [True, False])
def test_delete_really_deletes(
    installation: Deployment, intake: Deployment, unfinished: bool
) -> None:
    """When DELETE answers, nothing of the job is in S3 but the note that it is gone."""
    deployment = intake if unfinished else installation
    with deployment.client() as client:
        answer = submit(client, headers=SAFETENSORS if unfinished else WAIT)
        job = answer.json()
        path = f"/v1/jobs/{job['id']}"
        assert client.delete(path).status_code == 204
        store = deployment.ledger().store
        left = [key for key in store.list("") if job["id"] in key]
        assert left == [f"manifests/{job['id']}.json"]
        for output in job["outputs"]:
            assert httpx.get(output["url"]).status_code == 404
        assert client.get(path).status_code == 410
        assert client.get(f"{path}/result").status_code == 410
        listed = client.get("/v1/jobs", params={"limit": 200}).json()["results"]
        assert job["id"] not in {other["id"] for other in listed}
        assert client.delete(path).status_code == 204


def test_listing(accepting: httpx.Client) -> None:
    """Newest first, page by page without gaps or repeats, filtered by status."""
    ids = [submit(accepting).json()["id"] for _ in range(5)]
    accepting.post(f"/v1/jobs/{ids[2]}/cancel")
    canceled = accepting.get("/v1/jobs", params={"status": "canceled"}).json()["results"]
    assert canceled[0]["id"] == ids[2]
    assert {job["status"] for job in canceled} == {"canceled"}
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while len(seen) < 5:
        page = accepting.get("/v1/jobs", params={"limit": 2} | cursor).json()
        seen += [job["id"] for job in page["results"]]
        cursor = {"cursor": page["next"]}
    assert seen[:5] == ids[::-1]


def test_catalogue(working: httpx.Client) -> None:
    """The catalogue lists the built-in VAEs with what latents have to be, and whether loaded."""
    vaes = {vae["name"]: vae for vae in working.get("/v1/vaes").json()["results"]}
    assert {"sd-v1", "sdxl", "flux", "taesd", "taesdxl", "taesd3", "taef1", "demo"} <= set(vaes)
    assert (vaes["flux"]["latent_channels"], vaes["flux"]["packed"]) == (16, True)
    assert (vaes["sd-v1"]["latent_channels"], vaes["sd-v1"]["spatial_factor"]) == (4, 8)
    submit(working, headers=WAIT)
    eventually(lambda: working.get("/v1/vaes/demo").json()["loaded"])


def test_queue(accepting: httpx.Client, working: httpx.Client) -> None:
    """The queue's depth by priority and VAE, its age, and the workers."""
    before = accepting.get("/v1/queue").json()
    submit(accepting, priority="batch")
    queue = accepting.get("/v1/queue").json()
    assert queue["queued"] == before["queued"] + 1
    assert queue["by_priority"]["batch"] == before["by_priority"]["batch"] + 1
    assert queue["by_vae"]["demo"] == queue["queued"]
    assert queue["oldest_queued_seconds"] >= 0
    assert (queue["workers"], working.get("/v1/queue").json()["workers"]) == (0, 1)


def test_health(accepting: httpx.Client) -> None:
    """The process lives; the parts answer; the store keeps its promises."""
    assert accepting.get("/healthz").json() == {"status": "ok"}
    ready = accepting.get("/readyz")
    assert (ready.status_code, ready.json()["warnings"]) == (200, [])


def test_openapi(accepting: httpx.Client) -> None:
    """The service describes itself: every call, every option, and a page to read it."""
    document = accepting.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert {"/v1/jobs", "/v1/jobs/{job_id}", "/v1/jobs/{job_id}/result", "/v1/vaes"} <= set(
        document["paths"]
    )
    parameters = document["paths"]["/v1/jobs"]["post"]["parameters"]
    names = {parameter["name"] for parameter in parameters}
    assert {"vae", "format", "quality", "scaling", "ttl", "Idempotency-Key", "Prefer"} <= {
        *names,
        *(name.title() for name in names),
    }
    assert accepting.get("/docs").status_code == 200


def test_keys(servers: Servers, tmp_path: Path) -> None:
    """With keys set, only they get in, and none sees another's jobs."""
    keys = f"anna:secret-a,bert:{hash_key('secret-b')}"
    with servers.deploy(tmp_path, api_keys=keys) as deployment:
        deployment.start_api()
        with deployment.client() as client:
            basic = base64.b64encode(b"anyone:secret-b").decode()
            anna = {"Authorization": "Bearer secret-a", **SAFETENSORS}
            bert = {"Authorization": f"Basic {basic}", **SAFETENSORS}
            answer = submit(client, headers=anna)
            assert answer.status_code == 202
            path = answer.headers["location"]
            assert client.get(path, headers=anna).status_code == 200
            for method in ("GET", "DELETE"):
                assert client.request(method, path, headers=bert).status_code == 404
            assert client.get("/v1/jobs", headers=bert).json()["results"] == []
            hashed = {"Authorization": f"Bearer {hash_key('secret-b')}"}
            wrong = {"Authorization": "Bearer nope"}
            for headers in ({}, wrong, hashed, {"Authorization": "Basic !"}):
                refused = client.get("/v1/jobs", headers=headers)
                assert refused.status_code == 401
                assert refused.headers["content-type"] == "application/problem+json"
                assert "Bearer" in refused.headers["www-authenticate"]
            assert client.get("/healthz").status_code == 200
