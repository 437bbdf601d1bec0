"""Webhooks end to end: a real API, worker, courier and receiver."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks.webhooks import Webhook

from tests.conftest import Deployment, Servers, eventually, make_latents

HEADERS = {"Content-Type": "application/x-safetensors"}
SECRET, ROTATED, OTHER = (
    "whsec_" + base64.b64encode(bytes([number]) * 32).decode() for number in range(3)
)
KEYS = "anna:key-of-anna,bert:key-of-bert"


class Receiver:
    """A webhook receiver that answers what it is told to, and keeps what came."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.received: list[tuple[dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.received.append((headers, body))
                status, headers = receiver.answers.pop(0) if receiver.answers else (200, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "4")
                self.end_headers()
                self.wfile.write(b"word")

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """Give the events that came about a job."""
        contents = [json.loads(body) for _, body in self.received]
        return [content for content in contents if content["data"]["id"] == job_id]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver on loopback."""
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def darkroom(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An API, a worker and a courier that tries again soon."""
    settings = {
        "api_keys": KEYS,
        "webhook_secret": f"{SECRET},{ROTATED}",
        "webhook_secrets": f"bert:{OTHER}",
        "webhook_allow": "127.0.0.0/8",
        "webhook_schedule": "0,0.2,0.2",
    }
    with servers.deploy(tmp_path_factory.mktemp("webhooks"), **settings) as deployment:
        deployment.start_api()
        deployment.start_worker()
        deployment.start_courier()
        yield deployment


def submit(client: httpx.Client, url: str, **options: Any) -> str:
    """Submit a job with a callback, wait for its end, and return its id."""
    answer = client.post(
        "/v1/jobs",
        params={"vae": "demo", "callback_url": url, **options},
        content=make_latents(1, 4, 8, 8),
        headers={**HEADERS, "Prefer": "wait=30"},
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def as_anna(darkroom: Deployment) -> httpx.Client:
    """Open a client with the key of anna."""
    return darkroom.client(headers={"Authorization": "Bearer key-of-anna"})


def deliveries(client: httpx.Client, job_id: str, state: str) -> dict[str, Any]:
    """Read the delivery log as soon as the event is in some state."""

    def read() -> dict[str, Any] | None:
        log = client.get(f"/v1/jobs/{job_id}/deliveries").json()
        return log if [event["state"] for event in log["events"]] == [state] else None

    return eventually(read) or {}


def test_a_finished_job_is_told_and_signed(darkroom: Deployment, receiver: Receiver) -> None:
    """The event carries the job, and verifies under both secrets while one replaces the other."""
    with as_anna(darkroom) as client:
        job_id = submit(client, receiver.url)
        (event,) = eventually(lambda: receiver.events(job_id))
        assert event["type"] == "job.succeeded"
        assert event["data"]["status"] == "succeeded"
        assert httpx.get(event["data"]["outputs"][0]["url"]).status_code == 200
        headers, body = receiver.received[0]
        for secret in (SECRET, ROTATED):
            Webhook(secret).verify(body, headers)
        log = deliveries(client, job_id, "delivered")
        (attempt,) = log["results"]
        assert (attempt["status"], attempt["attempt"], attempt["response"]) == (200, 1, "word")
        assert attempt["id"] == headers["webhook-id"]
        document = client.get(f"/v1/jobs/{job_id}").json()
        assert document["callback"]["deliveries"] == {"job.succeeded": "delivered"}


def test_a_keys_own_secret_signs(darkroom: Deployment, receiver: Receiver) -> None:
    """An API key with a secret of its own gets its webhooks signed with it."""
    with darkroom.client(headers={"Authorization": "Bearer key-of-bert"}) as client:
        submit(client, receiver.url)
    headers, body = eventually(lambda: receiver.received)[0]
    Webhook(OTHER).verify(body, headers)


def test_failures_are_tried_again_under_one_id(darkroom: Deployment, receiver: Receiver) -> None:
    """A receiver that fails is asked again; the message has the same id each time."""
    receiver.answers = [(500, {}), (302, {"Location": "http://127.0.0.1:1/"})]
    with as_anna(darkroom) as client:
        job_id = submit(client, receiver.url)
        log = deliveries(client, job_id, "delivered")
    assert [attempt["status"] for attempt in log["results"]] == [500, 302, 200]
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1


@pytest.mark.parametrize(
    ("answers", "state", "attempts"),
    [([410], "gone", 1), ([500, 503, 500], "exhausted", 3)],
)
def test_a_receiver_may_be_given_up(
    darkroom: Deployment, receiver: Receiver, answers: list[int], state: str, attempts: int
) -> None:
    """410, or failure to the end of the schedule, ends the sending, and the log says so."""
    receiver.answers = [(status, {}) for status in answers]
    with as_anna(darkroom) as client:
        job_id = submit(client, receiver.url)
        log = deliveries(client, job_id, state)
        assert len(log["results"]) == attempts
        assert log["events"][0]["next_attempt_at"] is None
        answer = client.post(f"/v1/jobs/{job_id}/deliveries")
        assert answer.status_code == 202
        deliveries(client, job_id, "delivered")
    assert len(receiver.events(job_id)) == attempts + 1


def test_only_the_events_that_were_asked_for(darkroom: Deployment, receiver: Receiver) -> None:
    """`callback_events` chooses; a job whose end is another is not told."""
    with as_anna(darkroom) as client:
        quiet = submit(client, receiver.url, callback_events="job.failed")
        loud = submit(client, receiver.url, callback_events="job.failed,job.succeeded")
        eventually(lambda: receiver.events(loud))
        assert receiver.events(quiet) == []
        assert client.get(f"/v1/jobs/{quiet}/deliveries").json() == {"results": [], "events": []}
        assert client.post(f"/v1/jobs/{quiet}/deliveries").status_code == 409


def test_cancelling_is_told(servers: Servers, receiver: Receiver, tmp_path: Path) -> None:
    """A job that its owner cancels has an event too."""
    settings = {"webhook_secret": SECRET, "webhook_allow": "127.0.0.0/8"}
    with servers.deploy(tmp_path, **settings) as darkroom:
        darkroom.start_api()
        darkroom.start_courier()
        with darkroom.client() as client:
            job = client.post(
                "/v1/jobs",
                params={"vae": "demo", "callback_url": receiver.url},
                content=make_latents(1, 4, 8, 8),
                headers=HEADERS,
            ).json()
            client.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
            (event,) = eventually(lambda: receiver.events(job["id"]))
            assert event["type"] == "job.canceled"


def test_a_lost_redis_loses_no_event(servers: Servers, receiver: Receiver, tmp_path: Path) -> None:
    """What was undelivered when Redis was lost is sent after the rebuild; the rest is not again."""
    settings = {
        "webhook_secret": SECRET,
        "webhook_allow": "127.0.0.0/8",
        "webhook_schedule": "0,600",
    }
    with servers.deploy(tmp_path, **settings) as darkroom:
        darkroom.start_api()
        darkroom.start_worker()
        darkroom.start_courier()
        with darkroom.client() as client:
            told = submit(client, receiver.url)
            deliveries(client, told, "delivered")
            receiver.answers = [(500, {})]
            untold = submit(client, receiver.url)
            eventually(lambda: len(receiver.events(untold)) == 1)
            first_id = receiver.received[-1][0]["webhook-id"]
            darkroom.flush()
            darkroom.await_ready()
            eventually(lambda: len(receiver.events(untold)) == 2)
            assert receiver.received[-1][0]["webhook-id"] == first_id
        assert len(receiver.events(told)) == 1


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"callback_url": "http://10.0.0.1/hook"}, "callback_url"),
        ({"callback_url": "http://0x7f000001/hook"}, "callback_url"),
        ({"callback_url": "ftp://example.org/hook"}, "callback_url"),
        (
            {"callback_url": "https://example.org/", "callback_events": "job.done"},
            "callback_events",
        ),
        ({"callback_events": "job.failed"}, "callback_events"),
    ],
)
def test_callbacks_are_checked_first(
    darkroom: Deployment, options: dict[str, str], field: str
) -> None:
    """A callback that cannot be is refused before anything is queued."""
    with as_anna(darkroom) as client:
        answer = client.post(
            "/v1/jobs",
            params={"vae": "demo", **options},
            content=make_latents(1, 4, 8, 8),
            headers=HEADERS,
        )
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_without_a_secret_no_callback(servers: Servers, tmp_path: Path) -> None:
    """A service that cannot sign says so, rather than sending what nobody can verify."""
    with servers.deploy(tmp_path, webhook_secret="") as darkroom:
        darkroom.start_api()
        answer = httpx.post(
            f"{darkroom.api_url}/v1/jobs",
            params={"vae": "demo", "callback_url": "https://example.org/hook"},
            content=make_latents(1, 4, 8, 8),
            headers=HEADERS,
        )
    assert answer.status_code == 422
    assert "DARKROOM_WEBHOOK_SECRET" in answer.json()["detail"]
