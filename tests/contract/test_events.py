"""Events over real HTTP: each change exactly once, whoever restarts, however many listen."""

from __future__ import annotations

import asyncio
import itertools
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
import redis
import uvicorn

from darkroom_api.app import create_app
from darkroom_api.events import HEARTBEAT_SECONDS, Listening
from darkroom_api.waiting import Waiters
from darkroom_infra.catalog import Catalog
from darkroom_infra.keeper import Sweeper
from darkroom_infra.ledger import ending, outputs_prefix
from darkroom_infra.records import (
    AsyncRecordsClient,
    BatchMember,
    BatchSpec,
    Manifest,
    RecordsClient,
    StoredOutput,
)
from darkroom_infra.records import transitions as steps
from darkroom_infra.records.transitions import Claim
from darkroom_infra.settings import Settings
from darkroom_wire.ids import new_id
from darkroom_wire.jobs import Format, JobOptions, Latents, Status
from tests.conftest import Deployment, Servers, eventually, make_latents
from tests.contract.conftest import SAFETENSORS
from tests.listening import Event, listening, read_events, told

LATENTS = make_latents(1, 4, 8, 8)
LEASE = timedelta(minutes=5)
DAY = timedelta(days=1)
LISTENERS = 1000
BYTES_PER_LISTENER = 160_000


@pytest.fixture(scope="module")
def deployment(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An API without a worker: the tests are the worker."""
    with servers.deploy(tmp_path_factory.mktemp("events")) as deployment:
        deployment.start_api()
        yield deployment


@pytest.fixture
def fragile(servers: Servers, tmp_path: Path) -> Iterator[Deployment]:
    """The same for one test, which may do harm to it."""
    with servers.deploy(tmp_path) as deployment:
        deployment.start_api()
        yield deployment


def submit(client: httpx.Client, **query: Any) -> str:
    """Submit a job, and return its id."""
    answer = client.post(
        "/v1/jobs", params={"vae": "demo"} | query, content=LATENTS, headers=SAFETENSORS
    )
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def claim(deployment: Deployment, job_id: str) -> Claim:
    """Take a job as a worker does."""
    claimed = deployment.records().run(steps.claim(job_id, uuid4().hex, LEASE))
    assert claimed is not None
    return claimed


def extend(records: RecordsClient, claimed: Claim, progress: float) -> None:
    """Tell how far an attempt is, as a worker does."""
    assert records.run(steps.extend(claimed.spec.id, claimed.nonce, LEASE, progress))


def succeed(deployment: Deployment, job_id: str) -> Manifest:
    """End a job with one output."""
    output = StoredOutput(
        key=f"{outputs_prefix(job_id, 'nonce')}0.png",
        content_type="image/png",
        bytes=7,
        width=8,
        height=8,
        sha256="0" * 64,
    )
    manifest = ending(job_id, Status.SUCCEEDED, DAY).model_copy(update={"outputs": (output,)})
    manifest = deployment.ledger().commit(manifest)
    deployment.records().run(steps.finish(manifest))
    return manifest


def test_each_change_is_an_event(deployment: Deployment) -> None:
    """Submission, begin, progress and end, in order, with the job's document; then the end."""
    with deployment.client() as client:
        job_id = submit(client)
        with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-request-id"]
            events = read_events(answer)
            queued = next(events)
            claimed = claim(deployment, job_id)
            running = next(events)
            extend(deployment.records(), claimed, 0.5)
            progress = next(events)
            succeed(deployment, job_id)
            (succeeded,) = events
        job = client.get(f"/v1/jobs/{job_id}").json()
    seen = [queued, running, progress, succeeded]
    assert [(event.name, event.id) for event in seen] == [
        ("job.queued", "1"),
        ("job.running", "2"),
        ("job.progress", None),
        ("job.succeeded", "3"),
    ]
    assert [event.document["type"] for event in seen] == [event.name for event in seen]
    assert [event.job["status"] for event in seen] == ["queued", "running", "running", "succeeded"]
    assert progress.job["progress"] == 0.5
    assert succeeded.job | {"outputs": None} == job | {"outputs": None}
    assert len(succeeded.job["outputs"]) == 1
    moments = [datetime.fromisoformat(event.document["timestamp"]) for event in seen]
    assert all(b - a > timedelta(milliseconds=-2) for a, b in itertools.pairwise(moments))


def test_what_happened_before_is_told_too(deployment: Deployment) -> None:
    """Who comes late is told every change, each with the status of then, and the outputs last."""
    with deployment.client() as client:
        job_id = submit(client)
        deployment.records().run(steps.release(claim(deployment, job_id)))
        claim(deployment, job_id)
        succeed(deployment, job_id)
        with listening(client, f"/v1/jobs/{job_id}/events") as events:
            seen = list(events)
    assert [(event.name, event.id, event.job["status"]) for event in seen] == [
        ("job.queued", "1", "queued"),
        ("job.running", "2", "running"),
        ("job.queued", "3", "queued"),
        ("job.running", "4", "running"),
        ("job.succeeded", "5", "succeeded"),
    ]
    assert [len(event.job["outputs"]) for event in seen] == [0, 0, 0, 0, 1]
    assert [event.job["finished_at"] is None for event in seen] == [True] * 4 + [False]


def test_listeners_go_on_where_they_were(deployment: Deployment) -> None:
    """Only what follows `Last-Event-ID` is told; 204, which stops an EventSource, if nothing."""
    with deployment.client() as client:
        job_id = submit(client)
        path = f"/v1/jobs/{job_id}/events"
        claim(deployment, job_id)
        succeed(deployment, job_id)
        ways: list[dict[str, Any]] = [
            {"headers": {"Last-Event-ID": "2"}},
            {"params": {"last_event_id": "2"}},
            {"headers": {"Last-Event-ID": "2"}, "params": {"last_event_id": "1"}},
        ]
        for arguments in ways:
            with listening(client, path, **arguments) as events:
                assert told(events) == [("job.succeeded", "3")]
        done = client.get(path, headers={"Last-Event-ID": "3"})
        assert (done.status_code, done.content) == (204, b"")


def test_the_end_of_results_is_a_change(deployment: Deployment) -> None:
    """A job whose results have expired says so, after its end."""
    with deployment.client() as client:
        job_id = submit(client)
        path = f"/v1/jobs/{job_id}/events"
        assert client.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
        deployment.records().run(steps.retire(job_id, steps.State.EXPIRED))
        with listening(client, path) as events:
            assert told(events) == [
                ("job.queued", "1"),
                ("job.canceled", "2"),
                ("job.expired", "3"),
            ]
        with listening(client, path, headers={"Last-Event-ID": "2"}) as events:
            assert told(events) == [("job.expired", "3")]


def test_a_deletion_ends_the_stream(deployment: Deployment) -> None:
    """Who listens to a job that is deleted hears that it was canceled; later ones get 410."""
    with deployment.client() as client:
        job_id = submit(client)
        path = f"/v1/jobs/{job_id}/events"
        with listening(client, path) as events:
            assert next(events).name == "job.queued"
            assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
            assert told(events) == [("job.canceled", "2")]
        assert client.get(path).status_code == 410


@pytest.mark.parametrize(
    ("path", "headers", "status", "field"),
    [
        ("/v1/jobs/018f2b5c-0000-7000-8000-000000000000/events", {}, 404, None),
        ("/v1/jobs/none/events", {}, 404, None),
        ("/v1/batches/018f2b5c-0000-7000-8000-000000000000/events", {}, 404, None),
        ("{job}?colour=red", {}, 422, "colour"),
        ("{job}?last_event_id=1&last_event_id=2", {}, 422, "last_event_id"),
        ("{job}?last_event_id=last", {}, 400, "last_event_id"),
        ("{job}", {"Last-Event-ID": "-1"}, 400, "Last-Event-ID"),
        ("{job}", {"Last-Event-ID": "9" * 400}, 400, "Last-Event-ID"),
    ],
)
def test_refusals_are_problems(
    accepting: httpx.Client, path: str, headers: dict[str, str], status: int, field: str | None
) -> None:
    """What cannot be listened to is answered by a problem document, not by a stream."""
    job_id = submit(accepting)
    answer = accepting.get(path.format(job=f"/v1/jobs/{job_id}/events"), headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert [fault["field"] for fault in answer.json()["errors"]] == ([field] if field else [])


def test_nobody_listens_to_another(servers: Servers, tmp_path: Path) -> None:
    """A key is needed, and another key's job is not there."""
    with servers.deploy(tmp_path, api_keys="anna:a,bert:b") as deployment:
        deployment.start_api()
        with deployment.client(headers={"Authorization": "Bearer a"}) as anna:
            path = f"/v1/jobs/{submit(anna)}/events"
            with listening(anna, path) as events:
                assert next(events).name == "job.queued"
        for key, status in (("Bearer b", 404), ("", 401)):
            answer = httpx.get(deployment.api_url + path, headers={"Authorization": key})
            assert answer.status_code == status
            assert answer.headers["content-type"] == "application/problem+json"


def test_a_restart_of_the_service_loses_no_change(fragile: Deployment) -> None:
    """A client that comes back with its last id sees each change once, whichever process answers.

    The service ends its streams in order: the client sees an end, not a broken connection.
    """
    seen: list[Event] = []
    broken: list[httpx.TransportError] = []
    ended = threading.Event()

    def follow(path: str) -> None:
        while not seen or seen[-1].name != "job.succeeded":
            last = [event.id for event in seen if event.id]
            headers = {"Last-Event-ID": last[-1]} if last else {}
            with suppress(httpx.TransportError), fragile.client() as client:
                with client.stream("GET", path, headers=headers) as answer:
                    try:
                        seen.extend(read_events(answer))
                    except httpx.TransportError as error:
                        broken.append(error)
                ended.set()

    with fragile.client() as client:
        job_id = submit(client)
    listener = threading.Thread(target=follow, args=[f"/v1/jobs/{job_id}/events"], daemon=True)
    listener.start()
    eventually(lambda: len(seen) == 1)
    process = fragile.processes[-1]
    claim(fragile, job_id)
    eventually(lambda: len(seen) == 2)
    process.terminate()
    process.wait(20)
    assert ended.wait(20)
    fragile.start_api()
    succeed(fragile, job_id)
    listener.join(30)
    assert [(event.name, event.id) for event in seen] == [
        ("job.queued", "1"),
        ("job.running", "2"),
        ("job.succeeded", "3"),
    ]
    assert broken == []


def test_a_lost_redis_connection_loses_no_change(fragile: Deployment) -> None:
    """A change that is announced while the service does not listen is found in the log."""
    url = fragile.environment["DARKROOM_REDIS_URL"]
    database = url.rpartition("/")[2]
    with fragile.client() as client, redis.Redis.from_url(url, decode_responses=True) as valkey:
        job_id = submit(client)
        with listening(client, f"/v1/jobs/{job_id}/events") as events:
            assert next(events).name == "job.queued"
            subscriptions = [
                entry["id"]
                for entry in valkey.client_list(_type="pubsub")
                if entry["db"] == database
            ]
            assert subscriptions
            for number in subscriptions:
                valkey.client_kill_filter(_id=number)
            claim(fragile, job_id)
            succeed(fragile, job_id)
            assert told(events) == [("job.running", "2"), ("job.succeeded", "3")]


def test_a_rebuilt_record_counts_on(fragile: Deployment) -> None:
    """After Redis was lost, changes have higher ids than before: no listener misses the end."""
    with fragile.client() as client:
        job_id = submit(client)
        path = f"/v1/jobs/{job_id}/events"
        claim(fragile, job_id)
        with listening(client, path) as events:
            assert [next(events).id, next(events).id] == ["1", "2"]
            fragile.flush()
            # Not 404: the job is not gone, it is not on record again yet.
            assert client.get(f"/v1/jobs/{job_id}").status_code in (200, 503)
            Sweeper(fragile.records(), fragile.ledger()).recover()
            succeed(fragile, job_id)
            (end,) = events
        with listening(client, path, headers={"Last-Event-ID": "2"}) as events:
            (again,) = events
    assert (end.name, end.id) == (again.name, again.id) == ("job.succeeded", end.id)
    assert int(end.id or 0) > 2


def test_heartbeats(deployment: Deployment) -> None:
    """Silence is broken by comments, so that no proxy takes the connection for dead."""
    with deployment.client() as client:
        job_id = submit(client)

    async def listen() -> list[bytes]:
        records = AsyncRecordsClient(deployment.environment["DARKROOM_REDIS_URL"])
        listening_here = Listening(
            records, Waiters(records), deployment.ledger().store, heartbeat=0.05
        )
        async with aclosing(listening_here.job_events(job_id, 1)) as events:
            seen = [await anext(events) for _ in range(3)]
        await records.close()
        return seen

    assert asyncio.run(listen()) == [b"retry: 2000\n\n", b": ping\n\n", b": ping\n\n"]
    assert HEARTBEAT_SECONDS == 15


@contextmanager
def served_here(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, int]]:
    """Serve from this process, through a socket that holds little of what is not read."""
    for name, value in deployment.environment.items():
        monkeypatch.setenv(name, value)
    app = create_app(Settings.load(), Catalog.load(None))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=[[listener]])
        thread.start()
        eventually(lambda: server.started)
        try:
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join(30)


def test_a_slow_listener_holds_nobody_up(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One who does not read delays no other, and finds the end when he reads at last.

    Of the progress that he missed he is told only the latest.
    """
    records = deployment.records()
    with deployment.client() as client:
        job_id = submit(client, metadata='{"long": "' + "x" * 4000 + '"}')
    path = f"/v1/jobs/{job_id}/events"
    with served_here(deployment, monkeypatch) as address, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(30)
        slow.connect(address)
        slow.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert slow.recv(12) == b"HTTP/1.1 200"
        claimed = claim(deployment, job_id)
        with (
            httpx.Client(base_url=f"http://127.0.0.1:{address[1]}", timeout=30) as client,
            listening(client, path) as events,
        ):
            assert [next(events).name for _ in range(2)] == ["job.queued", "job.running"]
            for step in range(1, 101):
                extend(records, claimed, step / 200)
                assert next(events).job["progress"] == step / 200
            succeed(deployment, job_id)
            assert told(events) == [("job.succeeded", "3")]
        received = _drain(slow)
    assert received.count(b"event: job.running\n") == 1
    assert received.count(b"event: job.succeeded\n") == 1
    assert received.count(b"event: job.progress\n") < 50


def _drain(connection: socket.socket) -> bytes:
    """Read until the last chunk."""
    received = bytearray()
    while not received.endswith(b"\r\n0\r\n\r\n"):
        chunk = connection.recv(1 << 20)
        assert chunk, "the connection broke before the stream's end"
        received += chunk
    return bytes(received)


@contextmanager
def many_files(count: int) -> Iterator[None]:
    """Allow so many open files, here and in what is started here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"at most {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_listeners(servers: Servers, tmp_path: Path) -> None:
    """A thousand open connections to one process all hear the end, and cost it little memory."""
    with many_files(3 * LISTENERS), servers.deploy(tmp_path) as deployment:
        deployment.start_api()
        process = psutil.Process(deployment.processes[-1].pid)
        with deployment.client() as client:
            jobs = [submit(client) for _ in range(20)]
        url = httpx.URL(deployment.api_url)

        async def connect(job_id: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await reader.readuntil(b"event: job.queued\n")
            return reader, writer

        async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            rest = await reader.readuntil(b"\r\n0\r\n\r\n")
            writer.close()
            return b"event: job.succeeded\n" in rest

        async def listen(end: Callable[[], None]) -> tuple[int, list[bool]]:
            # Some first, so that what is allocated once is not counted.
            first = [await connect(jobs[0]) for _ in range(50)]
            before = process.memory_info().rss
            more = []
            for start in range(50, LISTENERS, 50):
                some = (connect(jobs[i % len(jobs)]) for i in range(start, start + 50))
                more += await asyncio.gather(*some)
            used = process.memory_info().rss - before
            await asyncio.to_thread(end)
            async with asyncio.timeout(120):
                heard = await asyncio.gather(*(hear(*both) for both in (*first, *more)))
            return used, heard

        def end_all() -> None:
            for job_id in jobs:
                succeed(deployment, job_id)

        used, heard = asyncio.run(listen(end_all))
        assert len(heard) == LISTENERS
        assert all(heard)
        assert used / (LISTENERS - 50) < BYTES_PER_LISTENER


def test_a_batch_is_followed_to_its_end(deployment: Deployment) -> None:
    """Snapshots of a batch, numbered by the jobs that have ended, and its completion at last."""
    latents = Latents(shape=(1, 4, 8, 8), dtype="float32", bytes=1024)
    members = [BatchMember(id=new_id(), name=str(i), latents=latents, offset=0) for i in range(3)]
    batch = BatchSpec(
        id=new_id(),
        owner="local",
        created_at=datetime.now().astimezone(),
        options=JobOptions(vae="demo"),
        format=Format.PNG,
        ttl=3600,
        members=tuple(members),
    )
    records = deployment.records()
    records.run(steps.register_batch(batch))
    for job in batch.jobs():
        records.run(steps.accept(job))
    path = f"/v1/batches/{batch.id}/events"
    with deployment.client() as client:
        with listening(client, path) as events:
            first = next(events)
            assert (first.name, first.id, first.job["total"]) == ("batch.progress", "0", 3)
            succeed(deployment, members[0].id)
            changed = next(event for event in events if event.id == "1")
            assert (changed.name, changed.job["counts"]["succeeded"]) == ("batch.progress", 1)
            for member in members[1:]:
                succeed(deployment, member.id)
            *between, last = events
            assert {event.id for event in between} <= {"1", "2"}
            assert (last.name, last.id, last.job["progress"]) == ("batch.completed", "3", 1.0)
        with listening(client, path, headers={"Last-Event-ID": "2"}) as events:
            assert told(events) == [("batch.completed", "3")]
        assert client.get(path, headers={"Last-Event-ID": "3"}).status_code == 204
