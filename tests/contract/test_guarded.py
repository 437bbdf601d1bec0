"""A service with keys: who gets in, and what each owner sees. Its lists are exact."""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Iterator

import httpx
import pytest

from tests.conftest import Deployment, Servers, make_latents
from tests.contract.conftest import SAFETENSORS

LATENTS = make_latents(1, 4, 8, 8)
NOBODYS_JOB = "01990000-0000-7000-8000-000000000000"
OWNERS = ("anna", "ben", "carla", "dora", "emil")
CALLS = [
    ("POST", "/v1/jobs?vae=demo"),
    ("GET", "/v1/jobs"),
    ("GET", f"/v1/jobs/{NOBODYS_JOB}"),
    ("GET", f"/v1/jobs/{NOBODYS_JOB}/result"),
    ("POST", f"/v1/jobs/{NOBODYS_JOB}/cancel"),
    ("DELETE", f"/v1/jobs/{NOBODYS_JOB}"),
    ("GET", "/v1/vaes"),
    ("GET", "/v1/vaes/demo"),
    ("GET", "/v1/queue"),
    ("GET", "/metrics"),
]


def key_of(owner: str) -> str:
    """Give an owner's key."""
    return f"key-of-{owner}"


@pytest.fixture(scope="module")
def guarded(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An API with keys, one of them given by its hash."""
    hashed = hashlib.sha256(key_of("emil").encode()).hexdigest()
    plain = (f"{owner}:{key_of(owner)}" for owner in OWNERS[:-1])
    keys = ",".join([*plain, f"emil:sha256:{hashed}"])
    with servers.deploy(tmp_path_factory.mktemp("guarded"), api_keys=keys) as deployment:
        deployment.start_api()
        yield deployment


def client_of(guarded: Deployment, owner: str) -> httpx.Client:
    """Open a client with an owner's key."""
    return guarded.client(headers={"Authorization": f"Bearer {key_of(owner)}"})


def submit(client: httpx.Client, headers: dict[str, str] | None = None, **query: str) -> str:
    """Submit latents, and return the job's id."""
    answer = client.post(
        "/v1/jobs",
        params={"vae": "demo", **query},
        content=LATENTS,
        headers={**SAFETENSORS, **(headers or {})},
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def basic(user: str, password: str) -> str:
    """Make the header of HTTP Basic."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_no_call_without_a_key(guarded: Deployment, method: str, path: str) -> None:
    """Every call is refused before anything else is looked at, and says how to get in."""
    body = b"no tensor" if method == "POST" else None
    answer = httpx.request(method, guarded.api_url + path, content=body)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"]
    assert "Bearer" in answer.headers["www-authenticate"]
    assert "Basic" in answer.headers["www-authenticate"]
    problem = answer.json()
    assert (problem["status"], problem["error"]) == (401, problem["detail"])


@pytest.mark.parametrize(
    "path", ["/", "/page/main.js", "/healthz", "/readyz", "/docs", "/openapi.json"]
)
def test_no_key_is_needed(guarded: Deployment, path: str) -> None:
    """Probes, the page and the reference are open: they tell nothing of anybody's jobs."""
    assert httpx.get(guarded.api_url + path).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        f"Bearer {key_of('anna')}",
        f"bearer {key_of('anna')}",
        f"Bearer   {key_of('anna')}",
        basic("", key_of("anna")),
        basic("anybody", key_of("anna")),
        f"Bearer {key_of('emil')}",
        basic("emil", key_of("emil")),
    ],
)
def test_keys_open(guarded: Deployment, header: str) -> None:
    """A key works as a bearer token and as the password of any user; so does one set by hash."""
    answer = httpx.get(f"{guarded.api_url}/v1/queue", headers={"Authorization": header})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        f"Bearer {key_of('anna')}x",
        f"Bearer {key_of('anna')[:-1]}",
        f"Bearer {key_of('anna').upper()}",
        f"Token {key_of('anna')}",
        key_of("anna"),
        "Bearer anna",
        "Bearer sha256:" + hashlib.sha256(key_of("anna").encode()).hexdigest(),
        "Bearer sha256:" + hashlib.sha256(key_of("emil").encode()).hexdigest(),
        "Basic",
        "Basic !!!",
        "Basic " + base64.b64encode(b"\xff\xfe").decode(),
        "Basic " + base64.b64encode(key_of("anna").encode()).decode(),
        basic(key_of("anna"), ""),
        basic("anna", "wrong"),
    ],
)
def test_nothing_else_opens(guarded: Deployment, header: str) -> None:
    """Neither parts of a key, its name or its hash, nor headers that cannot be read."""
    answer = httpx.get(f"{guarded.api_url}/v1/queue", headers={"Authorization": header})
    assert answer.status_code == 401


def test_others_jobs_are_not_there(guarded: Deployment) -> None:
    """Another key's job is 404 for every call, exactly as one that never was; it stays unharmed."""
    with client_of(guarded, "anna") as anna, client_of(guarded, "ben") as ben:
        job_id = submit(anna)
        path = f"/v1/jobs/{job_id}"
        for method, call in (
            ("GET", path),
            ("GET", f"{path}?wait=5"),
            ("GET", f"{path}/result"),
            ("POST", f"{path}/cancel"),
            ("DELETE", path),
        ):
            answer = ben.request(method, call)
            never = ben.request(method, call.replace(job_id, NOBODYS_JOB))
            assert answer.status_code == never.status_code == 404
            assert answer.json()["detail"] == never.json()["detail"].replace(NOBODYS_JOB, job_id)
        assert job_id not in {job["id"] for job in ben.get("/v1/jobs").json()["results"]}
        assert anna.get(path).json()["status"] == "queued"


def test_an_idempotency_key_is_its_owners(guarded: Deployment) -> None:
    """Two owners may use the same key: each has a job of its own."""
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    with client_of(guarded, "anna") as anna, client_of(guarded, "ben") as ben:
        first, second = submit(anna, headers), submit(ben, headers)
        assert first != second
        assert (submit(anna, headers), submit(ben, headers)) == (first, second)


def test_a_list_has_every_job_once(guarded: Deployment) -> None:
    """Newest first; pages of any length go through all jobs, without gaps and repeats."""
    with client_of(guarded, "carla") as carla:
        assert carla.get("/v1/jobs").json() == {"results": [], "next": None}
        ids = [submit(carla) for _ in range(7)][::-1]
        canceled = [ids[1], ids[2], ids[6]]
        for job_id in canceled:
            assert carla.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
        queued = [job_id for job_id in ids if job_id not in canceled]
        for limit in (1, 2, 3, 6, 7, 8, 200):
            assert list(walk(carla, limit)) == ids
            assert list(walk(carla, limit, status="canceled")) == canceled
            assert list(walk(carla, limit, status="queued")) == queued
            assert list(walk(carla, limit, status="failed")) == []
        deleted = ids.pop(3)
        assert carla.delete(f"/v1/jobs/{deleted}").status_code == 204
        assert list(walk(carla, 2)) == ids


def walk(client: httpx.Client, limit: int, **query: str) -> Iterator[str]:
    """Follow a list from page to page."""
    cursor: dict[str, str] = {}
    while True:
        answer = client.get("/v1/jobs", params={"limit": str(limit), **query, **cursor})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["results"]) <= limit
        yield from (job["id"] for job in page["results"])
        if page["next"] is None:
            return
        assert page["results"], "a page that has a next one is not empty here"
        cursor = {"cursor": page["next"]}


def test_jobs_that_come_in_between_do_not_disturb(guarded: Deployment) -> None:
    """A job submitted while somebody pages is on none of the older pages."""
    with client_of(guarded, "dora") as dora:
        ids = [submit(dora) for _ in range(4)][::-1]
        first = dora.get("/v1/jobs", params={"limit": 2}).json()
        submit(dora)
        second = dora.get("/v1/jobs", params={"limit": 2, "cursor": first["next"]}).json()
        assert [job["id"] for page in (first, second) for job in page["results"]] == ids
        assert second["next"] is None


def test_priorities_order_the_queue(guarded: Deployment) -> None:
    """Interactive before normal before batch, and first come, first served within each."""
    with client_of(guarded, "emil") as emil:
        asked = ["batch", "normal", "interactive", "batch", "normal", "interactive"]
        ids = [submit(emil, priority=priority) for priority in asked]
        position = {
            job_id: emil.get(f"/v1/jobs/{job_id}").json()["queue_position"] for job_id in ids
        }
        expected = [ids[2], ids[5], ids[1], ids[4], ids[0], ids[3]]
        assert sorted(ids, key=position.__getitem__) == expected
        assert len(set(position.values())) == len(ids)
        emil.post(f"/v1/jobs/{ids[2]}/cancel")
        assert emil.get(f"/v1/jobs/{ids[5]}").json()["queue_position"] == position[ids[2]]
        assert emil.get(f"/v1/jobs/{ids[2]}").json()["queue_position"] is None
