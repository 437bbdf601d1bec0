"""The client's rules over real HTTP, against a small server that answers as it is told."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

import darkroom
from darkroom import AsyncClient, Client, RetryPolicy

JOB_ID = "0197a000-0000-7000-8000-000000000001"
LATENTS = np.zeros((1, 4, 8, 8), np.float16)


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """An answer to give. Status 0 closes the connection without one."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)


Answer = Reply | Callable[[Seen], Reply]


class Stub:
    """A server whose answers are set for each method and path. The last one is given for ever."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.answers: dict[tuple[str, str], list[Answer]] = {}
        self._lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                address = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                seen = Seen(self.command, address.path, parse_qs(address.query), headers, body)
                reply = stub.reply(seen)
                if reply.status == 0:
                    self.close_connection = True
                    return
                content = reply.body
                if not isinstance(content, bytes):
                    content = json.dumps(content).encode()
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the names that http.server calls

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def on(self, method: str, path: str, *answers: Answer) -> None:
        """Set the answers for one method and path."""
        self.answers[method, path] = list(answers)

    def reply(self, seen: Seen) -> Reply:
        """Note a request and choose its answer."""
        with self._lock:
            self.seen.append(seen)
            answers = self.answers.get((seen.method, seen.path))
            if not answers:
                return Reply(404, {"title": "nothing here"})
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer if isinstance(answer, Reply) else answer(seen)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def job(status: str = "queued", **changes: Any) -> dict[str, Any]:
    """A job's document."""
    return {
        "id": JOB_ID,
        "status": status,
        "vae": "demo",
        "format": "png",
        "priority": "normal",
        "latents": {"shape": [1, 4, 8, 8], "dtype": "float16", "bytes": 512},
        "created_at": "2026-01-01T00:00:00Z",
        **changes,
    }


def output(content: bytes, content_type: str = "image/png", **changes: Any) -> dict[str, Any]:
    """An output's description."""
    return {
        "url": "http://127.0.0.1:1/not-used",
        "content_type": content_type,
        "bytes": len(content),
        "width": 2,
        "height": 2,
        "sha256": hashlib.sha256(content).hexdigest(),
        **changes,
    }


def problem(status: int, **changes: Any) -> dict[str, Any]:
    """A problem document."""
    detail = "what is wrong"
    return {
        "type": "urn:darkroom:problem:x",
        "title": "A title",
        "status": status,
        "detail": detail,
        "error": detail,
        **changes,
    }


def png() -> bytes:
    """A real picture of two by two pixels."""
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (255, 0, 0)).save(file, "png")
    return file.getvalue()


@pytest.fixture
def service() -> Iterator[Stub]:
    """A server in the place of the service."""
    stub = Stub()
    yield stub
    stub.close()


@pytest.fixture
def store() -> Iterator[Stub]:
    """A server in the place of the object store."""
    stub = Stub()
    yield stub
    stub.close()


@pytest.fixture
def pauses() -> list[float]:
    """The pauses that the client makes."""
    return []


@pytest.fixture
def client(service: Stub, pauses: list[float]) -> Iterator[Client]:
    """A client that notes its pauses instead of making them, and has no luck in the jitter."""
    with Client(service.url, "secret-key", sleep=pauses.append, random=lambda: 0.0) as client:
        yield client


def finish(service: Stub, store: Stub, *contents: bytes, content_type: str = "image/png") -> None:
    """Let the service have a finished job whose outputs are in the store."""
    outputs = [output(content, content_type) for content in contents]
    service.on("GET", f"/v1/jobs/{JOB_ID}", Reply(200, job("succeeded", outputs=outputs)))

    def to_store(seen: Seen) -> Reply:
        return Reply(302, headers={"Location": f"{store.url}/output-{seen.query['index'][0]}"})

    service.on("GET", f"/v1/jobs/{JOB_ID}/result", to_store)
    for index, content in enumerate(contents):
        store.on("GET", f"/output-{index}", Reply(200, content))


def test_submit_sends_tensors_raw(service: Stub, client: Client) -> None:
    """Tensors go as raw bytes; shape, dtype and the options that were given go in the query."""
    service.on("POST", "/v1/jobs", Reply(202, job()))
    handle = client.submit(LATENTS, "demo", format="webp", quality=80, metadata={"a": 1})
    (seen,) = service.seen
    assert seen.query == {
        "vae": ["demo"],
        "format": ["webp"],
        "quality": ["80"],
        "metadata": ['{"a":1}'],
        "shape": ["1", "4", "8", "8"],
        "dtype": ["float16"],
    }
    assert seen.headers["content-type"] == "tensor/binary"
    assert seen.headers["authorization"] == "Bearer secret-key"
    assert seen.body == LATENTS.tobytes()
    assert (handle.id, handle.status, handle.info.vae) == (JOB_ID, "queued", "demo")


def test_idempotency_key_is_kept_over_retries(
    service: Stub, client: Client, pauses: list[float]
) -> None:
    """A submission that is sent again carries the same key, so that it is one job."""
    service.on("POST", "/v1/jobs", Reply(0), Reply(503, problem(503)), Reply(202, job()))
    client.submit(LATENTS, "demo")
    keys = {seen.headers["idempotency-key"] for seen in service.seen}
    assert len(service.seen) == 3
    assert len(keys) == 1
    assert len(pauses) == 2


def test_each_submission_has_its_own_key(service: Stub, client: Client) -> None:
    """Two calls are two jobs; a key of the caller's is sent as it is."""
    service.on("POST", "/v1/jobs", Reply(202, job()))
    client.submit(LATENTS, "demo")
    client.submit(LATENTS, "demo")
    client.submit(LATENTS, "demo", idempotency_key="mine")
    keys = [seen.headers["idempotency-key"] for seen in service.seen]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


def test_retry_after_is_honoured(service: Stub, client: Client, pauses: list[float]) -> None:
    """A service that says when to come back is asked again then, more often than it would be."""
    busy = Reply(429, problem(429), {"Retry-After": "7"})
    service.on("POST", "/v1/jobs", *[busy] * 9, Reply(202, job()))
    client.submit(LATENTS, "demo")
    assert pauses == [7.0] * 9


def test_retries_end(service: Stub, client: Client, pauses: list[float]) -> None:
    """A service that stays away is given up after a bounded number of attempts."""
    service.on("GET", f"/v1/jobs/{JOB_ID}", Reply(0))
    with pytest.raises(darkroom.ServiceUnreachableError, match=service.url):
        client.job(JOB_ID)
    assert len(service.seen) == 6
    assert pauses == sorted(pauses)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, darkroom.InvalidRequestError),
        (401, darkroom.NotAuthorizedError),
        (403, darkroom.NotAuthorizedError),
        (404, darkroom.NotFoundError),
        (409, darkroom.ConflictError),
        (410, darkroom.GoneError),
        (413, darkroom.InvalidRequestError),
        (415, darkroom.InvalidRequestError),
        (422, darkroom.InvalidRequestError),
        (429, darkroom.OverloadedError),
        (500, darkroom.ServiceFaultError),
        (503, darkroom.OverloadedError),
    ],
)
def test_problems_become_errors(
    service: Stub, status: int, expected: type[darkroom.RequestRefusedError]
) -> None:
    """Each status has its error, which carries the whole problem document."""
    fields = [{"field": "vae", "message": "unknown"}]
    service.on("POST", "/v1/jobs", Reply(status, problem(status, errors=fields)))
    with (
        Client(service.url, retry=RetryPolicy(attempts=1)) as client,
        pytest.raises(expected) as caught,
    ):
        client.submit(LATENTS, "demo")
    error = caught.value
    assert type(error) is expected
    assert (error.status, error.title, error.detail) == (status, "A title", "what is wrong")
    assert error.errors[0].field == "vae"
    assert "vae: unknown" in str(error)


def test_errors_without_a_problem_document(service: Stub, client: Client) -> None:
    """A proxy's error page becomes an error of the tree all the same."""
    service.on("GET", "/v1/vaes", Reply(403, b"<html>no\nway</html>"))
    with pytest.raises(darkroom.NotAuthorizedError, match="403 Forbidden: <html>no way</html>"):
        client.vaes()


def test_another_service(service: Stub, client: Client) -> None:
    """An answer that is no job document is named as what it is."""
    service.on("GET", f"/v1/jobs/{JOB_ID}", Reply(200, b"hello"))
    with pytest.raises(darkroom.UnexpectedAnswerError, match="hello"):
        client.job(JOB_ID)


def test_redirected_service(service: Stub, client: Client) -> None:
    """A request is not sent on to another address with the key: the address is told instead."""
    service.on("POST", "/v1/jobs", Reply(301, headers={"Location": "https://elsewhere/v1/jobs"}))
    with pytest.raises(darkroom.UnexpectedAnswerError, match="https://elsewhere"):
        client.submit(LATENTS, "demo")


def test_options_are_checked_before_sending(service: Stub, client: Client) -> None:
    """What the service would refuse costs no request, and all of it is named."""
    with pytest.raises(darkroom.InvalidRequestError) as caught:
        client.submit(LATENTS, "demo", quality=0, colour="red")  # type: ignore[call-arg]
    assert {error.field for error in caught.value.errors} == {"quality", "colour"}
    assert service.seen == []


def test_result_comes_from_the_store_without_the_key(
    service: Stub, store: Stub, client: Client
) -> None:
    """The redirect to the store is followed, and the store never sees the key."""
    finish(service, store, png())
    image = client.job(JOB_ID).result()
    assert image.size == (2, 2)
    assert image.getpixel((0, 0)) == (255, 0, 0)
    assert all("authorization" in seen.headers for seen in service.seen)
    assert [seen.path for seen in store.seen] == ["/output-0"]
    assert "authorization" not in store.seen[0].headers


def test_several_pictures(service: Stub, store: Stub, client: Client) -> None:
    """A batch of pictures comes as a list, in the batch's order."""
    finish(service, store, b"first", b"second")
    handle = client.job(JOB_ID)
    assert handle.download() == [b"first", b"second"]
    assert handle.result(as_="bytes") == [b"first", b"second"]


def test_store_out_of_reach(service: Stub, store: Stub, client: Client) -> None:
    """Where the store cannot be reached, the service passes the bytes on."""
    finish(service, store, b"picture")
    direct = Reply(200, b"picture")
    away = Reply(302, headers={"Location": "http://127.0.0.1:1/closed"})
    service.on(
        "GET",
        f"/v1/jobs/{JOB_ID}/result",
        lambda seen: direct if seen.query.get("redirect") == ["false"] else away,
    )
    assert client.job(JOB_ID).download() == [b"picture"]


def test_corrupt_result(service: Stub, store: Stub, client: Client) -> None:
    """Bytes that differ from those that were stored are refused."""
    finish(service, store, b"picture")
    store.on("GET", "/output-0", Reply(200, b"pictura"))
    with pytest.raises(darkroom.ResultCorruptError, match="sha256"):
        client.job(JOB_ID).download()


def test_expired_result(service: Stub, store: Stub, client: Client) -> None:
    """A result that is gone is told as such, with the job."""
    finish(service, store, b"picture")
    service.on("GET", f"/v1/jobs/{JOB_ID}/result", Reply(410, problem(410)))
    with pytest.raises(darkroom.ResultExpiredError) as caught:
        client.job(JOB_ID).result()
    assert caught.value.job.id == JOB_ID


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("failed", darkroom.JobFailedError),
        ("canceled", darkroom.JobCanceledError),
        ("expired", darkroom.ResultExpiredError),
    ],
)
def test_jobs_without_a_result(
    service: Stub, client: Client, status: str, expected: type[darkroom.JobEndedError]
) -> None:
    """A job that ended in another way raises what it ended in, with the job's own reason."""
    error = {"type": "t", "title": "t", "detail": "out of memory"}
    service.on("GET", f"/v1/jobs/{JOB_ID}", Reply(200, job(status, error=error)))
    with pytest.raises(expected, match=f"{JOB_ID}.*out of memory"):
        client.job(JOB_ID).result()


def test_wait_asks_the_service_to_wait(service: Stub, client: Client, pauses: list[float]) -> None:
    """Waiting is long waiting: few requests, each of which asks for up to 30 seconds."""
    path = f"/v1/jobs/{JOB_ID}"
    service.on(
        "GET", path, Reply(200, job()), Reply(200, job("running")), Reply(200, job("failed"))
    )
    handle = client.job(JOB_ID)
    assert handle.wait().status == "failed"
    assert [seen.query.get("wait") for seen in service.seen] == [None, ["30"], ["30"]]
    # This service answers too early: the client does not ask again at once.
    assert pauses == [0.5]


def test_wait_times_out(service: Stub) -> None:
    """A job that is not finished in time raises an error that is a TimeoutError too."""
    now = [0.0]
    service.on("GET", f"/v1/jobs/{JOB_ID}", Reply(200, job("running")))

    def sleep(seconds: float) -> None:
        now[0] += seconds

    with Client(service.url, clock=lambda: now[0], sleep=sleep) as client:
        handle = client.job(JOB_ID)
        with pytest.raises(TimeoutError, match="still running after") as caught:
            handle.wait(timeout=1.2)
    assert isinstance(caught.value, darkroom.WaitTimeoutError)
    assert [seen.query.get("wait") for seen in service.seen[1:]] == [["2"], ["1"], ["1"]]


def test_submit_many_keeps_the_order(service: Stub, client: Client) -> None:
    """Handles come in the order of the latents, though the requests are concurrent."""

    def accept(seen: Seen) -> Reply:
        return Reply(202, job(name=str(np.frombuffer(seen.body, np.float16)[0])))

    service.on("POST", "/v1/jobs", accept)
    latents = [np.full((1, 4, 2, 2), value, np.float16) for value in range(30)]
    handles = client.submit_many(latents, "demo")
    assert [handle.info.name for handle in handles] == [f"{value}.0" for value in range(30)]
    assert len({seen.headers["idempotency-key"] for seen in service.seen}) == 30


def test_submit_many_tells_what_was_accepted(service: Stub, client: Client) -> None:
    """The first refusal ends the submitting, and the error knows the jobs that exist."""

    def accept(seen: Seen) -> Reply:
        value = int(np.frombuffer(seen.body, np.float16)[0])
        return Reply(422, problem(422)) if value == 20 else Reply(202, job(id=f"job-{value}"))

    service.on("POST", "/v1/jobs", accept)
    latents = [np.full((1, 4, 2, 2), value, np.float16) for value in range(200)]
    with pytest.raises(darkroom.InvalidRequestError) as caught:
        client.submit_many(latents, "demo")
    accepted = len(service.seen) - 1
    assert accepted < 199
    assert len(caught.value.submitted) == accepted
    assert "job-0" in caught.value.submitted


def test_as_completed_gives_each_job_once_as_it_ends(service: Stub, client: Client) -> None:
    """The job that ends first comes first, whatever the order of submission."""
    second_seen = threading.Event()
    service.on("POST", "/v1/jobs", *[Reply(202, job(id=name)) for name in ("a", "b", "c")])
    first, second, third = (client.submit(LATENTS, "demo") for _ in range(3))

    def slow(seen: Seen) -> Reply:
        second_seen.wait(30)
        return Reply(200, job("succeeded", id="a"))

    service.on("GET", "/v1/jobs/a", slow)
    service.on("GET", "/v1/jobs/b", Reply(200, job("running", id="b")), Reply(200, job("failed")))
    service.on("GET", "/v1/jobs/c", Reply(200, job("succeeded", id="c")))
    ended = []
    for handle in client.as_completed([first, second, third], timeout=60):
        ended.append(handle)
        if len(ended) == 2:
            second_seen.set()
    assert ended[-1] is first
    assert {handle.status for handle in ended[:2]} == {"failed", "succeeded"}
    assert all("wait" in seen.query for seen in service.seen if seen.method == "GET")


def test_as_completed_times_out(service: Stub, client: Client) -> None:
    """A timeout ends the iteration though no request has come back."""
    never = threading.Event()
    service.on("POST", "/v1/jobs", Reply(202, job()))

    def hang(seen: Seen) -> Reply:
        never.wait(30)
        return Reply(200, job())

    service.on("GET", f"/v1/jobs/{JOB_ID}", hang)
    try:
        with pytest.raises(darkroom.WaitTimeoutError, match="1 jobs are not finished"):
            list(client.as_completed([client.submit(LATENTS, "demo")], timeout=0.05))
    finally:
        never.set()


def test_jobs_follows_the_cursor(service: Stub, client: Client) -> None:
    """A listing goes on from page to page, and stops at its limit."""
    pages = {
        None: {"results": [job(id="3"), job(id="2")], "next": "more"},
        "more": {"results": [job(id="1"), job(id="0")], "next": None},
    }
    service.on(
        "GET", "/v1/jobs", lambda seen: Reply(200, pages[seen.query.get("cursor", [None])[0]])
    )
    assert [handle.id for handle in client.jobs()] == ["3", "2", "1", "0"]
    assert [handle.id for handle in client.jobs(status="queued", limit=3)] == ["3", "2", "1"]
    assert service.seen[-1].query["status"] == ["queued"]


def test_one_vae(service: Stub, client: Client) -> None:
    """One entry of the catalogue is read by its name, with what only its own document has."""
    entry = {"name": "a b", "family": "sd", "source": "s", "config": {"scaling_factor": 0.5}}
    service.on("GET", "/v1/vaes/a%20b", Reply(200, entry))
    assert client.vae("a b").config == {"scaling_factor": 0.5}

    async def scenario() -> None:
        async with AsyncClient(service.url) as asynchronous:
            assert await asynchronous.vae("a b") == client.vae("a b")

    asyncio.run(scenario())


def test_pictures_are_submitted_to_be_encoded(service: Stub, client: Client) -> None:
    """With the task `encode` both clients send pictures as such; without it none goes out."""
    service.on("POST", "/v1/jobs", Reply(202, job()))
    client.submit(png(), "demo", task="encode")

    async def scenario() -> None:
        async with AsyncClient(service.url) as asynchronous:
            await asynchronous.submit(Image.new("RGB", (2, 2)), "demo", task="encode")

    asyncio.run(scenario())
    for seen in service.seen:
        assert seen.query == {"vae": ["demo"], "task": ["encode"]}
        assert seen.headers["content-type"] == "image/png"
    with pytest.raises(darkroom.LatentsError):
        client.submit(Image.new("RGB", (2, 2)), "demo")
    assert len(service.seen) == 2


def test_cancel_twice(service: Stub, client: Client) -> None:
    """Canceling what is canceled already succeeds; canceling what ended otherwise does not."""
    path = f"/v1/jobs/{JOB_ID}"
    service.on("POST", f"{path}/cancel", Reply(409, problem(409)))
    service.on("GET", path, Reply(200, job("running")), Reply(200, job("canceled")))
    handle = client.job(JOB_ID)
    assert handle.cancel().status == "canceled"
    service.on("GET", path, Reply(200, job("succeeded")))
    with pytest.raises(darkroom.ConflictError):
        handle.cancel()


def test_delete_after_a_lost_answer(service: Stub, client: Client) -> None:
    """A deletion whose answer was lost is done when the job is not found; else that is an error."""
    path = f"/v1/jobs/{JOB_ID}"
    service.on("GET", path, Reply(200, job()))
    handle = client.job(JOB_ID)
    service.on("DELETE", path, Reply(0), Reply(404, problem(404)))
    handle.delete()
    with pytest.raises(darkroom.NotFoundError):
        handle.delete()


def test_async_client(service: Stub, store: Stub) -> None:
    """The asynchronous client does the same: submit, wait, fetch, without the key to the store."""
    finish(service, store, png())
    service.on("POST", "/v1/jobs", Reply(503, problem(503)), Reply(202, job()))
    pauses: list[float] = []

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    async def scenario() -> None:
        async with AsyncClient(service.url, "secret-key", sleep=note) as client:
            handle = await client.submit(LATENTS, "demo")
            image = await handle.result(timeout=30)
            assert image.size == (2, 2)
            handles = await client.submit_many([LATENTS] * 5, "demo")
            ended = [handle async for handle in client.as_completed(handles, timeout=30)]
            assert len(ended) == len(handles) == 5
            assert {handle.status for handle in ended} == {"succeeded"}

    asyncio.run(scenario())
    assert len(pauses) == 1
    assert len({seen.headers["idempotency-key"] for seen in service.seen[:2]}) == 1
    assert all("authorization" not in seen.headers for seen in store.seen)


def test_async_listing_and_errors(service: Stub) -> None:
    """The asynchronous client lists, times out and tells what was accepted, as the other does."""
    service.on("GET", "/v1/jobs", Reply(200, {"results": [job()] * 3, "next": None}))
    service.on("GET", f"/v1/jobs/{JOB_ID}", Reply(200, job("running")))
    service.on("POST", "/v1/jobs", Reply(202, job()), Reply(422, problem(422)))

    async def scenario() -> None:
        async with AsyncClient(service.url) as client:
            handles = [handle async for handle in client.jobs(limit=2)]
            assert len(handles) == 2
            with pytest.raises(darkroom.WaitTimeoutError):
                await handles[0].wait(timeout=0)
            with pytest.raises(darkroom.InvalidRequestError) as caught:
                await client.submit_many([LATENTS] * 20, "demo")
            assert caught.value.submitted == (JOB_ID,)
            with pytest.raises(darkroom.WaitTimeoutError):
                async for _ in client.as_completed(handles, timeout=0.01):
                    pass

    asyncio.run(scenario())
