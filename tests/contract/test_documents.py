"""What the answers say, word for word: job documents, problems, the service's description."""

from __future__ import annotations

import http.client
import itertools
import json
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.numpy

from tests.conftest import Deployment, make_latents
from tests.contract.conftest import SAFETENSORS

LATENTS = make_latents(1, 4, 8, 8)


def submit(
    client: httpx.Client, body: bytes = LATENTS, headers: dict[str, str] | None = None, **query: Any
) -> httpx.Response:
    """Submit latents to the demo VAE."""
    return client.post(
        "/v1/jobs",
        params={"vae": "demo", **query},
        content=body,
        headers={**SAFETENSORS, **(headers or {})},
    )


def decoded(client: httpx.Client, body: bytes, **query: Any) -> np.ndarray[Any, Any]:
    """Have latents decoded, and fetch the tensor."""
    job = submit(client, body, {"Prefer": "wait=60"}, format="safetensors", **query).json()
    assert job["status"] == "succeeded", job
    content = client.get(f"/v1/jobs/{job['id']}/result?redirect=false").content
    values: np.ndarray[Any, Any] = safetensors.numpy.load(content)["decoded"]
    return values


def test_a_fresh_job(accepting: httpx.Client) -> None:
    """The document of an accepted job is the contract's example: what did not happen is empty."""
    job = submit(accepting, priority="batch", format="webp", metadata='{"a": 1}').json()
    created = datetime.fromisoformat(job.pop("created_at"))
    assert abs(created - datetime.now(UTC)) < timedelta(seconds=10)
    assert uuid.UUID(job.pop("id"))
    assert job.pop("queue_position") >= 0
    assert job == {
        "status": "queued",
        "vae": "demo",
        "format": "webp",
        "priority": "batch",
        "latents": {"shape": [1, 4, 8, 8], "dtype": "float32", "bytes": 1024},
        "started_at": None,
        "finished_at": None,
        "expires_at": None,
        "attempts": 0,
        "progress": 0.0,
        "outputs": [],
        "error": None,
        "timings": {},
        "provenance": {},
        "batch_id": None,
        "name": None,
        "metadata": {"a": 1},
        "callback": None,
    }


def test_a_finished_job(working: httpx.Client) -> None:
    """The document of a finished job tells when, how and from what its outputs were made."""
    job = submit(working, make_latents(2, 4, 8, 8), {"Prefer": "wait=60"}).json()
    assert (job["status"], job["progress"], job["attempts"]) == ("succeeded", 1.0, 1)
    assert (job["queue_position"], job["error"]) == (None, None)
    moments = [datetime.fromisoformat(job[f"{name}_at"]) for name in ("created", "started")]
    moments += [datetime.fromisoformat(job[f"{name}_at"]) for name in ("finished", "expires")]
    # Records tell time by Redis's clock, in whole milliseconds.
    assert all(b - a > timedelta(milliseconds=-2) for a, b in itertools.pairwise(moments))
    assert moments[3] - moments[2] == timedelta(seconds=86_400)
    asked = {"url", "content_type", "bytes", "width", "height", "sha256"}
    assert all(asked <= set(output) for output in job["outputs"])
    provenance = job["provenance"]
    assert {"source", "revision", "class", "dtype", "device", "versions"} <= set(provenance)
    assert provenance["dtype"] == "float32"
    assert provenance["method"] in ("whole", "exact-banded")
    assert provenance["batch_size"] >= 2
    assert working.get(f"/v1/jobs/{job['id']}").json()["finished_at"] == job["finished_at"]


def test_comfyui_files_are_scaled_by_their_version(working: httpx.Client) -> None:
    """An unmarked `.latent` file is divided by 0.18215, a marked one is taken as it is.

    What a caller says of the scaling stands above what the file says.
    """
    values = np.random.default_rng(3).standard_normal((1, 4, 8, 8)).astype("float32")
    plain = safetensors.numpy.save({"x": values})
    old = safetensors.numpy.save({"latent_tensor": values})
    marker = np.zeros(0, "float32")
    new = safetensors.numpy.save({"latent_tensor": values, "latent_format_version_0": marker})
    as_it_is = decoded(working, plain, scaling="none")
    divided = decoded(working, plain, scaling_factor=0.18215)
    assert np.abs(as_it_is - divided).max() > 0.1
    np.testing.assert_allclose(decoded(working, new), as_it_is, atol=1e-5)
    np.testing.assert_allclose(decoded(working, old), divided, atol=1e-5)
    np.testing.assert_allclose(decoded(working, old, scaling="none"), as_it_is, atol=1e-5)
    own = decoded(working, new, scaling="vae")
    np.testing.assert_allclose(own, decoded(working, plain), atol=1e-5)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"text": 'ü 🎞 \x00 " \\ \n', "numbers": [0, -1, 1.5, 1e-9, 10**30], "more": [None, True]},
        {"deep": [[[[[[[[{"a": {"b": {"c": []}}}]]]]]]]]},
        {"long": "x" * 4085},
    ],
    ids=["empty", "values", "deep", "4 KiB"],
)
def test_metadata_comes_back(accepting: httpx.Client, metadata: dict[str, Any]) -> None:
    """Metadata is given back as it came, at once and later."""
    text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":"))
    answer = submit(accepting, metadata=text)
    assert answer.status_code == 202, answer.text
    assert answer.json()["metadata"] == metadata
    assert accepting.get(answer.headers["location"]).json()["metadata"] == metadata


@pytest.mark.parametrize(
    "text",
    [
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        '{"\\udc00": 1}',
        '{"a": ' + "[" * 300 + "]" * 300 + "}",
        '{"a": ' + "[" * 900 + "]" * 900 + "}",
    ],
    ids=["NaN", "infinity", "overflow", "surrogate", "surrogate as key", "300 deep", "900 deep"],
)
def test_metadata_that_cannot_come_back(intake: Deployment, text: str) -> None:
    """What is no JSON, or cannot be given back as it came, is the caller's fault: never a 500."""
    answer = httpx.post(
        f"{intake.api_url}/v1/jobs",
        params={"vae": "demo", "metadata": text},
        content=LATENTS,
        headers=SAFETENSORS,
    )
    assert answer.status_code == 422, answer.text
    assert [fault["field"] for fault in answer.json()["errors"]] == ["metadata"]


def test_waiting_lasts_as_long_as_asked(accepting: httpx.Client) -> None:
    """A wait for a job that does not end is over after its seconds; the job stays queued."""
    started = time.monotonic()
    answer = submit(accepting, headers={"Prefer": "wait=1"})
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert answer.headers["preference-applied"] == "wait=1"
    read = accepting.get(answer.headers["location"], params={"wait": 1})
    assert (read.status_code, read.json()["status"]) == (200, "queued")
    assert 1.9 < time.monotonic() - started < 20


def test_an_end_wakes_who_waits(intake: Deployment) -> None:
    """A request that has been sent with a long wait is answered by the end of the job."""
    with intake.client() as client:
        path = submit(client).headers["location"]
        url = httpx.URL(intake.api_url)
        waiting = http.client.HTTPConnection(url.host, url.port, timeout=30)
        waiting.request("GET", f"{path}?wait=60")
        assert client.get("/v1/queue").status_code == 200
        assert client.post(f"{path}/cancel").status_code == 200
        answer = waiting.getresponse()
        assert (answer.status, json.load(answer)["status"]) == (200, "canceled")
        waiting.close()


def test_a_deletion_wakes_who_waits(intake: Deployment) -> None:
    """Who waits for a job that is deleted meanwhile is told so, as any later reader is."""
    with intake.client() as client:
        path = submit(client).headers["location"]
        url = httpx.URL(intake.api_url)
        waiting = http.client.HTTPConnection(url.host, url.port, timeout=30)
        waiting.request("GET", f"{path}?wait=60")
        assert client.get("/v1/queue").status_code == 200
        assert client.delete(path).status_code == 204
        answer = waiting.getresponse()
        # The cancel that comes first may be seen before the deletion that follows it.
        seen = json.load(answer)
        assert answer.status == 410 or seen["status"] == "canceled"
        assert client.get(path).status_code == 410
        waiting.close()


@pytest.mark.parametrize("prefer", ["", "wait=1"])
def test_the_key_of_a_deleted_job(accepting: httpx.Client, prefer: str) -> None:
    """The same request under the key of a deleted job is told what every reader of it is told."""
    key = str(uuid.uuid4())
    first = submit(accepting, headers={"Idempotency-Key": key})
    assert accepting.delete(first.headers["location"]).status_code == 204
    again = submit(accepting, headers={"Idempotency-Key": key, "Prefer": prefer})
    assert again.status_code == 410, again.text


def test_the_key_of_a_finished_job(working: httpx.Client) -> None:
    """The same request under the key of a finished job gives that job, with its outputs."""
    headers = {"Idempotency-Key": str(uuid.uuid4()), "Prefer": "wait=60"}
    first, again = (submit(working, headers=headers) for _ in range(2))
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["id"] == again.json()["id"]
    assert [output["sha256"] for output in first.json()["outputs"]] == [
        output["sha256"] for output in again.json()["outputs"]
    ]


def test_one_side_alone_names_a_parameter(accepting: httpx.Client) -> None:
    """A problem's `field` is the name of one parameter, also where two belong together."""
    answer = submit(accepting, height=64)
    assert answer.status_code == 422
    assert {fault["field"] for fault in answer.json()["errors"]} <= {"height", "width"}


def test_a_vae(accepting: httpx.Client) -> None:
    """An entry of the catalogue tells what latents have to be; an unknown one is a problem."""
    listed = accepting.get("/v1/vaes").json()["results"]
    for vae in listed:
        alone = accepting.get(f"/v1/vaes/{vae['name']}").json()
        assert alone | {"config": None, "buffers": None} == vae
    flux = next(vae for vae in listed if vae["name"] == "flux")
    asked = ("family", "latent_channels", "spatial_factor", "temporal_factor", "packed", "loaded")
    assert [flux[key] for key in asked] == ["flux", 16, 8, 1, True, False]
    missing = accepting.get("/v1/vaes/nope")
    assert missing.status_code == 404
    assert missing.headers["content-type"] == "application/problem+json"


def test_the_description_knows_the_answers(accepting: httpx.Client) -> None:
    """The OpenAPI document shows the answers that are given.

    200 and 202 for a submission, and problem documents instead of the framework's own errors.
    """
    document = accepting.get("/openapi.json").json()
    submission = document["paths"]["/v1/jobs"]["post"]["responses"]
    assert {"200", "202"} <= set(submission)
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            for status, answer in call["responses"].items():
                if status.startswith("4"):
                    kinds = set(answer.get("content", {}))
                    assert kinds <= {"application/problem+json"}, (method, path, status)
    assert "HTTPValidationError" not in document.get("components", {}).get("schemas", {})


def test_the_page_is_closed_to_others(intake: Deployment) -> None:
    """The page may run its own scripts only, show its store's pictures, and stand in no frame."""
    answer = httpx.get(intake.api_url + "/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"].endswith(intake.environment["DARKROOM_S3_ENDPOINT_URL"])
    assert (
        httpx.get(intake.api_url + "/page/style.css").headers["content-type"].startswith("text/css")
    )
    script = httpx.get(intake.api_url + "/page/main.js")
    assert answer.headers["cache-control"] == script.headers["cache-control"] == "no-cache"
    unchanged = {"If-None-Match": script.headers["etag"]}
    assert httpx.get(intake.api_url + "/page/main.js", headers=unchanged).status_code == 304
    for path in ("/page/", "/page/none.js", "/page/../app.py", "/page/%2e%2e/app.py"):
        assert httpx.get(intake.api_url + path).status_code == 404
