"""Hostile callers beside others: streams without an end, and everything bad at once."""

from __future__ import annotations

import select
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.conftest import Deployment, make_latents
from tests.contract.conftest import SAFETENSORS
from tests.contract.test_bad_input import CASES, Case

LATENTS = make_latents(1, 4, 8, 8)
ENDLESS = 1 << 30
"""Bytes that a stream would have; sending them takes far longer than the test waits."""

BUFFERS = 64 << 20
"""Bytes that may be under way in sockets' buffers when an answer comes."""


def stream_until_answered(intake: Deployment, query: str) -> tuple[int, int]:
    """Send a body without an announced length until there is an answer: status, bytes sent."""
    url = httpx.URL(intake.api_url)
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    with socket.create_connection((url.host, url.port), timeout=20) as connection:
        connection.sendall(
            f"POST /v1/jobs?{query} HTTP/1.1\r\nHost: {url.host}\r\n"
            "Transfer-Encoding: chunked\r\nContent-Type: application/x-safetensors\r\n\r\n".encode()
        )
        sent = 0
        while sent < ENDLESS:
            readable, writable, _ = select.select([connection], [connection], [], 20)
            if readable:
                break
            assert writable, "the service neither reads nor answers"
            connection.sendall(chunk)
            sent += len(chunk)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 "), answer
    assert b"application/problem+json" in answer
    return int(answer.split()[1]), sent


@pytest.mark.parametrize(("query", "status"), [("vae=demo", 413), ("vae=nope", 422), ("", 422)])
def test_an_endless_body_is_answered_early(intake: Deployment, query: str, status: int) -> None:
    """The answer comes while nearly all of an endless body is unsent.

    At the limit of bytes, and before any byte where the query alone decides.
    """
    answered, sent = stream_until_answered(intake, query)
    assert answered == status
    assert sent < BUFFERS


def test_slow_callers_hold_nobody_up(intake: Deployment) -> None:
    """Fifty bodies that never come to their end do not keep another caller waiting."""
    url = httpx.URL(intake.api_url)
    connections = [socket.create_connection((url.host, url.port)) for _ in range(50)]
    try:
        for connection in connections:
            connection.sendall(
                f"POST /v1/jobs?vae=demo HTTP/1.1\r\nHost: {url.host}\r\nContent-Length: 1000\r\n"
                "Content-Type: application/x-safetensors\r\n\r\nhalf".encode()
            )
        with intake.client() as client:
            started = time.monotonic()
            answer = client.post("/v1/jobs?vae=demo", content=LATENTS, headers=SAFETENSORS)
            assert answer.status_code == 202
            assert time.monotonic() - started < 5
            client.delete(answer.headers["location"])
    finally:
        for connection in connections:
            connection.close()


def test_everything_bad_at_once(intake: Deployment) -> None:
    """The whole corpus comes from eight callers at once, beside good work.

    Each bad request has its answer, each good one is accepted, nothing else is stored or queued.
    """

    def stored() -> set[str]:
        return set(intake.ledger().store.list("inputs/"))

    def queued() -> int:
        return int(httpx.get(f"{intake.api_url}/v1/queue").json()["queued"])

    before, depth = stored(), queued()
    with intake.client() as client, ThreadPoolExecutor(8) as pool:

        def send(case: Case) -> int:
            given = {"vae": "demo"} | case.query
            query = {name: value for name, value in given.items() if value is not None}
            return client.post(
                "/v1/jobs", params=query, content=case.body, headers=case.headers
            ).status_code

        answers = [pool.submit(send, case) for case in CASES]
        good = [
            client.post("/v1/jobs?vae=demo", content=LATENTS, headers=SAFETENSORS)
            for _ in range(10)
        ]
        wrong = {
            case.name: answer.result()
            for case, answer in zip(CASES, answers, strict=True)
            if answer.result() != case.status
        }
        assert wrong == {}
        assert [answer.status_code for answer in good] == [202] * 10
        ids = [answer.json()["id"] for answer in good]
        assert queued() == depth + 10
        new = stored() - before
        assert sorted(ids * 2) == sorted(key.rpartition("/")[2].partition(".")[0] for key in new)
        assert client.get("/readyz").status_code == 200
        for job_id in ids:
            assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert (stored(), queued()) == (before, depth)
