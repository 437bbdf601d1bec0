"""The diffusers remote-VAE dialect over HTTP: long calls, bad ends, keys, a service that stops."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import Deployment, Servers, eventually
from tests.contract.conftest import RAW, SAFETENSORS
from tests.contract.test_bad_input import GOOD, check_problem
from tests.contract.test_dialect import (
    BASE64_TYPE,
    BODY,
    JOB,
    JSON_TYPE,
    PNG,
    TENSOR,
    decode,
    read,
    unwrap,
    wrap,
)
from tests.contract.test_guarded import basic
from tests.vaes import make_kl, write_catalog

SHORT = {"redirect": "true", "wait": "1"}
"""Ask for a redirect after a second."""

KEYS = {"anna": "key-of-anna", "ben": "key & sign of/ben"}


def list_jobs(client: httpx.Client, status: str = "queued") -> list[str]:
    """List the ids of jobs."""
    found = client.get("/v1/jobs", params={"status": status}).json()["results"]
    return [job["id"] for job in found]


def test_a_redirect_is_given_in_time(accepting: httpx.Client) -> None:
    """With `redirect=true` a call that takes longer goes on elsewhere, in the same form."""
    answer = decode(accepting, wrap(), JSON_TYPE, **SHORT, api_key="a&b=c/ü")
    job_id = answer.headers[JOB]
    try:
        assert answer.status_code == 303
        location = httpx.URL(answer.headers["location"])
        assert location.is_relative_url
        assert location.path == f"/hf/demo/jobs/{job_id}"
        carried = {**SHORT, "base64": "true", "api_key": "a&b=c/ü"}
        assert dict(location.params) == carried
        again = accepting.get(location)
        assert (again.status_code, again.headers[JOB]) == (303, job_id)
        assert again.headers["location"] == answer.headers["location"]
        assert accepting.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"
    finally:
        accepting.delete(f"/v1/jobs/{job_id}")


def test_a_redirect_leads_to_the_answer(servers: Servers, tmp_path: Path) -> None:
    """A client that follows redirects gets what it would have got at once, in every form."""
    with servers.deploy(tmp_path) as deployment:
        deployment.start_api()
        with deployment.client() as client, ThreadPoolExecutor() as pool:

            def encode(**query: str) -> httpx.Response:
                return client.post("/hf/demo/encode", params=query, content=PNG)

            def develop(**query: str) -> list[httpx.Response]:
                calls = [
                    pool.submit(decode, client, output_type="pt", **query),
                    pool.submit(decode, client, wrap(), BASE64_TYPE, output_type="pt", **query),
                    pool.submit(decode, client, image_format="png", **query),
                    pool.submit(encode, **query),
                ]
                return [call.result() for call in calls]

            redirects = develop(**SHORT)
            assert [answer.status_code for answer in redirects] == [303] * 4
            deployment.start_worker()
            at_once = develop()
            followed = [
                client.get(answer.headers["location"], follow_redirects=True)
                for answer in redirects
            ]
        for answer, redirected, direct in zip(followed, redirects, at_once, strict=True):
            assert answer.status_code == direct.status_code == 200, answer.text
            assert_alike(answer, direct)
            for name in ("content-type", "shape", "dtype"):
                assert answer.headers.get(name) == direct.headers.get(name)
            assert answer.headers[JOB] == redirected.headers[JOB]


def assert_alike(one: httpx.Response, other: httpx.Response) -> None:
    """Check that two answers have the same values, but for what batches round otherwise."""
    match one.headers["content-type"]:
        case "image/png":
            pictures = [Image.open(io.BytesIO(answer.content)) for answer in (one, other)]
            first, second = (np.asarray(picture, "int16") for picture in pictures)
            assert np.abs(first - second).max() <= 1
        case "application/json":
            assert np.allclose(unwrap(one), unwrap(other), atol=1e-4)
        case _:
            assert np.allclose(read(one), read(other), atol=1e-4)


def test_jobs_of_other_calls(working: httpx.Client) -> None:
    """A redirect's address has no job of another VAE, and no room for several pictures."""
    headers = {**SAFETENSORS, "Prefer": "wait=60"}
    job = working.post("/v1/jobs?vae=demo", content=GOOD, headers=headers).json()
    assert working.get(f"/hf/demo/jobs/{job['id']}").headers["content-type"] == "image/png"
    for path in (f"/hf/taesd/jobs/{job['id']}", "/hf/demo/jobs/nonsense", "/hf/nope/jobs/x"):
        answer = working.get(path)
        check_problem(answer, 404, ())
        assert JOB not in answer.headers
    check_problem(working.get(f"/hf/demo/jobs/{job['id']}?base64=perhaps"), 422, ("base64",))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/cancel", 409), ("DELETE", "", 410)],
)
def test_ended_by_another(accepting: httpx.Client, method: str, path: str, status: int) -> None:
    """Who waits for a job that is canceled or deleted learns it at once, with the job's id."""
    with ThreadPoolExecutor() as pool:
        before = set(list_jobs(accepting))
        call = pool.submit(decode, accepting)
        (job_id,) = eventually(lambda: set(list_jobs(accepting)) - before)
        accepting.request(method, f"/v1/jobs/{job_id}{path}")
        answer = call.result(timeout=20)
    # A deletion begins by canceling.
    check_problem(answer, 409, ("canceled by its owner",))
    assert answer.headers[JOB] == job_id
    check_problem(accepting.get(f"/hf/demo/jobs/{job_id}"), status, (job_id,))


@pytest.fixture(scope="module")
def hidden(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A worker with VAEs of which the API knows nothing yet, and one that cannot be loaded."""
    folder = tmp_path_factory.mktemp("hidden")
    make_kl(4).save_pretrained(folder / "vae")
    names = ("several", "channels")

    def catalog(name: str, source: Path) -> str:
        (folder / name).mkdir()
        entries = {vae: {"family": "sd", "source": str(source)} for vae in names}
        entries["broken"] = {"family": "sd", "source": str(folder / "nowhere")}
        return str(write_catalog(folder / name, entries))

    with servers.deploy(folder, catalog=catalog("of-api", folder / "elsewhere")) as deployment:
        deployment.start_api()
        deployment.start_worker(catalog=catalog("of-worker", folder / "vae"))
        yield deployment


@pytest.mark.parametrize(
    ("vae", "shape", "status", "says"),
    [
        ("several", (2, 4, 8, 8), 422, ("2 pictures", "output_type=pt")),
        ("channels", (1, 16, 8, 8), 422, ("latents", "4 channels", "failed")),
        ("broken", (1, 4, 8, 8), 502, ("nowhere", "failed")),
    ],
    ids=str,
)
def test_found_out_by_the_worker(
    hidden: Deployment, vae: str, shape: tuple[int, ...], status: int, says: tuple[str, ...]
) -> None:
    """What only a worker can know is said too: 422 if the caller can mend it, else 502."""
    length = 4 * shape[0] * shape[1] * 64
    query = {"shape": ",".join(map(str, shape)), "dtype": "float32"}
    with hidden.client() as client:
        answer = client.post(f"/hf/{vae}/decode", params=query, content=bytes(length), headers=RAW)
        check_problem(answer, status, says)
        assert client.get(f"/v1/jobs/{answer.headers[JOB]}").status_code == 200
        assert client.get(f"/hf/{vae}/jobs/{answer.headers[JOB]}").json() == answer.json() | {
            "instance": f"/hf/{vae}/jobs/{answer.headers[JOB]}"
        }


@pytest.fixture(scope="module")
def guarded(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An API with keys, and no worker."""
    keys = ",".join(f"{owner}:{key}" for owner, key in KEYS.items())
    with servers.deploy(tmp_path_factory.mktemp("guarded-hf"), api_keys=keys) as deployment:
        deployment.start_api()
        yield deployment


@pytest.mark.parametrize("path", ["decode", "encode", "jobs/x"])
@pytest.mark.parametrize(
    ("query", "headers"),
    [
        ({}, {}),
        ({"api_key": "wrong"}, {}),
        ({"api_key": ""}, {}),
        ({}, {"Authorization": "Bearer wrong"}),
        ({}, {"Authorization": basic("anna", "wrong")}),
    ],
    ids=str,
)
def test_no_call_without_a_key(
    guarded: Deployment, path: str, query: dict[str, str], headers: dict[str, str]
) -> None:
    """Without a key, or with a wrong one, a call is refused in JSON before it is looked at."""
    method = "GET" if path.startswith("jobs") else "POST"
    with guarded.client() as client:
        answer = client.request(method, f"/hf/nope/{path}", params=query, headers=headers)
        check_problem(answer, 401, ("API key",))


@pytest.mark.parametrize("way", ["address", "bearer", "basic", "address, beside a wrong header"])
def test_ways_to_bring_a_key(guarded: Deployment, way: str) -> None:
    """The key may be in the endpoint's query; the job is its owner's, and nobody else's."""
    key = KEYS["ben"]
    query, headers = {
        "address": ({"api_key": key}, {}),
        "bearer": ({}, {"Authorization": f"Bearer {key}"}),
        "basic": ({}, {"Authorization": basic("anybody", key)}),
        "address, beside a wrong header": ({"api_key": key}, {"Authorization": "Bearer netrc"}),
    }[way]
    with guarded.client() as client:
        answer = decode(client, headers=RAW | headers, **SHORT, **query)
        location = answer.headers["location"]
        assert answer.status_code == 303
        assert client.get(location, headers=headers).status_code == 303
        path = location.partition("?")[0]
        check_problem(client.get(path), 401, ())
        check_problem(client.get(path, params={"api_key": KEYS["anna"]}), 404, ("no job",))
        job = f"/v1/jobs/{answer.headers[JOB]}"
        assert client.get(job, params={"api_key": key}).status_code == 401, "only under /hf"
        assert client.delete(job, headers={"Authorization": f"Bearer {key}"}).status_code == 204
    assert key not in guarded.logs()


def test_a_service_that_stops(servers: Servers, tmp_path: Path) -> None:
    """Who waits when the service stops is told so at once, with the job, which goes on."""
    with servers.deploy(tmp_path) as deployment:
        deployment.start_api()
        with deployment.client() as client, ThreadPoolExecutor() as pool:
            waiting = pool.submit(decode, client)
            redirected = pool.submit(decode, client, redirect="true")
            jobs = eventually(lambda: (ids := list_jobs(client)) and len(ids) == 2 and set(ids))
            stopped = time.monotonic()
            deployment.processes[0].terminate()
            answer, redirect = waiting.result(timeout=20), redirected.result(timeout=20)
            assert time.monotonic() - stopped < 10
        check_problem(answer, 503, ("stopping", answer.headers[JOB]))
        assert int(answer.headers["retry-after"]) >= 1
        assert redirect.status_code == 303
        assert {answer.headers[JOB], redirect.headers[JOB]} == jobs
        deployment.processes[0].wait(20)


def test_hanging_up_loses_nothing(servers: Servers, tmp_path: Path) -> None:
    """A call whose client is gone as soon as it has sent its last byte is a job all the same."""
    with servers.deploy(tmp_path) as deployment:
        url = httpx.URL(deployment.start_api())
        for _ in range(5):
            hang_up(url, BODY, TENSOR)
        with deployment.client() as client:
            jobs = eventually(lambda: (ids := list_jobs(client)) and len(ids) == 5 and ids)
            deployment.start_worker()
            eventually(lambda: sorted(list_jobs(client, "succeeded")) == sorted(jobs))


def test_hanging_up_too_early(accepting: httpx.Client, intake: Deployment) -> None:
    """A call whose body never comes to its end is no job, and no defect in the log."""
    before = list_jobs(accepting)
    hang_up(httpx.URL(intake.api_url), BODY[:100], TENSOR, announced=len(BODY))
    eventually(lambda: "api.hung_up" in intake.logs())
    assert "api.defect" not in intake.logs()
    assert list_jobs(accepting) == before


def hang_up(url: httpx.URL, body: bytes, query: Any, announced: int | None = None) -> None:
    """Send a call, and close the connection."""
    target = f"/hf/demo/decode?{httpx.QueryParams(query)}"
    head = f"POST {target} HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: tensor/binary\r\n"
    with socket.create_connection((url.host, url.port or 80)) as connection:
        length = len(body) if announced is None else announced
        connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + body)
