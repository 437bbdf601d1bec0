"""The tools that do harm are checked too: each does what its scenario counts on."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from darkroom_infra.queue import Doorbell
from tests.faults.doorbells import NOTHING, Thief, reply_end
from tests.faults.outcome import median, percentile
from tests.faults.proxy import Proxy, Trouble
from tests.faults.scenarios.workers import claims_of, requeued_after
from tests.faults.site import Change

BODY = b"x" * 100_000


class _Echo(BaseHTTPRequestHandler):
    """Answers GET with a long body, and PUT with the number of bytes that came."""

    protocol_version = "HTTP/1.1"
    received: list[int]

    def do_GET(self) -> None:
        self._answer(BODY)

    def do_PUT(self) -> None:
        length = int(self.headers["Content-Length"])
        came = len(self.rfile.read(length))
        self.received.append(came)
        self._answer(str(came).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def received() -> list[int]:
    """The sizes of the bodies that came to the server."""
    return []


@pytest.fixture
def line(received: list[int]) -> Iterator[Proxy]:
    """A line to an HTTP server."""
    handler = type("Handler", (_Echo,), {"received": received})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    proxy = Proxy(server.server_address[1])
    yield proxy
    proxy.close()
    server.shutdown()
    server.server_close()


def _request(line: Proxy, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", line.port, timeout=10)
    try:
        connection.request(method, "/", body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


BROKEN = (OSError, http.client.HTTPException)


def test_a_healthy_line_carries_everything(line: Proxy, received: list[int]) -> None:
    """Bytes go through unchanged, both ways, and are counted."""
    assert _request(line) == (200, BODY)
    assert _request(line, "PUT", BODY) == (200, b"100000")
    assert received == [100_000]
    assert line.counts.requests == 2
    assert line.counts.received > 100_000


def test_a_line_that_is_away(line: Proxy) -> None:
    """Nobody answers until the line is healed."""
    line.disturb(Trouble(away=True))
    with pytest.raises(BROKEN):
        _request(line)
    line.heal()
    assert _request(line)[0] == 200


def test_answers_in_the_servers_place(line: Proxy, received: list[int]) -> None:
    """Errors are answered without the server, as often as was asked for."""
    line.disturb(Trouble(answer=503, times=2))
    assert _request(line)[0] == 503
    assert _request(line, "PUT", BODY)[0] == 503
    assert _request(line)[0] == 200
    assert received == []


def test_a_cut_in_a_body(line: Proxy, received: list[int]) -> None:
    """The server gets the beginning of a PUT and never the rest; other requests go through."""
    line.disturb(Trouble(where=b"PUT ", cut_request_after=50_000))
    with pytest.raises(BROKEN):
        _request(line, "PUT", BODY)
    assert _request(line)[0] == 200
    assert all(size < 100_000 for size in received)


def test_a_cut_before_the_answer(line: Proxy, received: list[int]) -> None:
    """The server has done what was asked, and the caller cannot know."""
    line.disturb(Trouble(where=b"PUT ", cut_answer_after=0))
    with pytest.raises(BROKEN):
        _request(line, "PUT", BODY)
    assert received == [100_000]


def test_a_cut_in_an_answer(line: Proxy) -> None:
    """An answer breaks off in its middle."""
    line.disturb(Trouble(cut_answer_after=1000))
    with pytest.raises(BROKEN):
        _request(line)


def test_a_slow_line(line: Proxy) -> None:
    """Bytes come at the rate that was set, and all of them come."""
    line.disturb(Trouble(rate=1_000_000))
    assert _request(line) == (200, BODY)


def test_a_silent_line(line: Proxy) -> None:
    """Bytes are taken, and nothing comes back."""
    line.disturb(Trouble(silent=True))
    with socket.create_connection(("127.0.0.1", line.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)


@pytest.mark.parametrize(
    "reply",
    [
        b"+OK\r\n",
        b":12\r\n",
        b"$5\r\nhello\r\n",
        b"$-1\r\n",
        b"*-1\r\n",
        b"_\r\n",
        b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
        b"%1\r\n+a\r\n:1\r\n",
        b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nd\r\n",
    ],
)
def test_replies_of_redis_are_told_apart(reply: bytes) -> None:
    """The end of a reply is found where it ends, and nowhere before all of it is there."""
    assert reply_end(reply + b"+next\r\n") == len(reply)
    assert all(reply_end(reply[:end]) is None for end in range(len(reply)))


def test_a_thief_takes_the_first_message_of_each_job() -> None:
    """The message that Redis hands to a worker is swallowed once; others pass, in any pieces."""
    bells = [Doorbell.for_job(job, rank=1) for job in ("a", "b")]
    replies = [
        b"*2\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(queue), queue, len(message), message)
        for queue, message in ((bell.queue_key.encode(), bell.message.encode()) for bell in bells)
    ]
    thief = Thief()
    rewrite = thief()
    assert [rewrite(reply) for reply in replies] == [NOTHING, NOTHING]
    assert rewrite(b"+PONG\r\n" + replies[0][:50]) == b"+PONG\r\n"
    assert rewrite(replies[0][50:]) == replies[0]
    assert thief.taken == 2


def test_requeueing_is_timed_from_the_kill() -> None:
    """A job that was claimed, killed and queued again counts; one that was handed back does not."""
    changes = [
        Change(1.0, "a", "running"),
        Change(1.5, "b", "running"),
        Change(1.6, "b", "queued"),
        Change(4.0, "a", "queued"),
    ]
    assert requeued_after([2.0], changes) == [2.0]


def test_renewed_leases_are_no_claims() -> None:
    """A job is taken where it was not running before."""
    changes = [
        Change(1.0, "a", "running"),
        Change(2.0, "a", "running"),
        Change(2.5, "b", "running"),
        Change(3.0, "a", "queued"),
        Change(4.0, "a", "running"),
    ]
    assert claims_of(["a"], changes) == [1.0, 4.0]


def test_percentiles() -> None:
    """The nearest rank, and nothing of nothing."""
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0
    assert percentile(list(map(float, range(1, 101))), 99) == 99.0
    assert median([1.0, 2.0, 9.0]) == 2.0
    assert percentile([], 50) != percentile([], 50)
