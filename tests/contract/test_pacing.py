"""`DARKROOM_RATE_LIMIT`: how often a key may submit, and how callers learn of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from darkroom import Client
from darkroom_infra.records import RecordsClient, transitions
from tests.conftest import Deployment, Servers, make_latents
from tests.contract.conftest import RAW, SAFETENSORS

LATENTS = make_latents(1, 4, 8, 8)
MOST = 6
OWNERS = ("anna", "ben", "carla", "dora", "emil")


@pytest.fixture(scope="module")
def paced(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An API that takes so many submissions an hour of each key."""
    keys = ",".join(f"{owner}:key-of-{owner}" for owner in OWNERS)
    folder = tmp_path_factory.mktemp("paced")
    with servers.deploy(folder, api_keys=keys, rate_limit=f"{MOST}/3600") as deployment:
        deployment.start_api()
        yield deployment


def client_of(paced: Deployment, owner: str) -> httpx.Client:
    """Open a client with an owner's key."""
    return paced.client(headers={"Authorization": f"Bearer key-of-{owner}"})


def submit(client: httpx.Client) -> httpx.Response:
    """Submit a job."""
    return client.post("/v1/jobs?vae=demo", content=LATENTS, headers=SAFETENSORS)


def left(answer: httpx.Response) -> int:
    """Read how many submissions are left."""
    assert answer.headers["RateLimit-Policy"] == f'"submissions";q={MOST};w=3600'
    found = re.fullmatch(r'"submissions";r=(\d+);t=(\d+)', answer.headers["RateLimit"])
    assert found
    assert 0 < int(found[2]) <= 3600
    return int(found[1])


def test_submissions_are_counted(paced: Deployment) -> None:
    """Each answer says how many are left; then come 429 and when to come again, as a problem."""
    with client_of(paced, "anna") as client:
        answers = [submit(client) for _ in range(MOST)]
        assert [answer.status_code for answer in answers] == [202] * MOST
        assert [left(answer) for answer in answers] == list(reversed(range(MOST)))
        refused = submit(client)
        assert (refused.status_code, left(refused)) == (429, 0)
        assert 0 < int(refused.headers["Retry-After"]) <= 3600 / MOST
        assert refused.headers["content-type"] == "application/problem+json"
        assert "6 times in 3600 s" in refused.json()["detail"]
        assert len(client.get("/v1/jobs").json()["results"]) == MOST


def test_each_key_has_its_own(paced: Deployment) -> None:
    """One key's submissions take nothing from another's, and reading takes nothing at all."""
    with client_of(paced, "ben") as ben, client_of(paced, "carla") as carla:
        for _ in range(MOST):
            submit(ben)
        assert submit(ben).status_code == 429
        for path in ("/v1/jobs", "/v1/queue", "/v1/vaes"):
            answer = ben.get(path)
            assert answer.status_code == 200
            assert "RateLimit" not in answer.headers
        assert left(submit(carla)) == MOST - 1


def test_every_way_to_submit_counts(paced: Deployment) -> None:
    """Jobs, batches, uploads and diffusers' calls draw on one account, refused ones too."""
    with client_of(paced, "dora") as client:
        answers = [
            submit(client),
            client.post("/v1/batches?vae=demo", content=LATENTS, headers=SAFETENSORS),
            client.post("/v1/uploads"),
            client.post("/hf/demo/decode", content=b"", headers=RAW),
            client.post("/v1/jobs?vae=nobody", content=LATENTS, headers=SAFETENSORS),
        ]
        assert [answer.status_code for answer in answers] == [202, 202, 201, 422, 422]
        assert [left(answer) for answer in answers] == [5, 4, 3, 2, 1]


def test_no_more_than_allowed_at_once(paced: Deployment) -> None:
    """Submissions that come at the same moment are counted one by one."""
    with client_of(paced, "emil") as client, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: submit(client).status_code, range(16)))
    assert sorted(answers) == [202] * MOST + [429] * (16 - MOST)


def test_strangers_are_not_counted(paced: Deployment) -> None:
    """Who has no key is refused as ever, and told nothing of limits."""
    answer = httpx.post(f"{paced.api_url}/v1/jobs?vae=demo", content=LATENTS)
    assert answer.status_code == 401
    assert "RateLimit" not in answer.headers


def test_the_client_waits_its_turn(servers: Servers, tmp_path: Path) -> None:
    """The Python client comes again when it may: all is submitted, and nothing twice."""
    with servers.deploy(tmp_path, rate_limit="2/8") as deployment:
        deployment.start_api()
        with Client(deployment.api_url) as client:
            jobs = [client.submit(LATENTS, vae="demo") for _ in range(4)]
        with deployment.client() as raw:
            listed = [job["id"] for job in raw.get("/v1/jobs").json()["results"]]
            assert 'route="/v1/jobs",status="429"' in raw.get("/metrics").text
    assert listed == [job.id for job in reversed(jobs)]


def test_another_limit_counts_from_its_start(servers: Servers) -> None:
    """A limit that was changed leaves nobody out for longer than its window; one may be high."""
    records = RecordsClient(servers.stack.redis_url, prefix=f"{uuid4()}:")
    day, minute, second = timedelta(days=1), timedelta(minutes=1), timedelta(seconds=1)
    for _ in range(50):
        records.run(transitions.pace("anna", 100, day))
    turn = records.run(transitions.pace("anna", 100, minute))
    assert turn.whole_in <= minute
    assert turn.next_in <= minute / 100 + timedelta(milliseconds=1)
    assert records.run(transitions.pace("ben", 100_000_000, second)).taken
    records.close()
