"""Sending webhooks to real listeners on this machine, kind and hostile.

The DNS cannot be controlled, so a resolver with the same contract stands in for it; every
connection is a real one.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import standardwebhooks
import trustme

from darkroom_infra.callbacks import parse_networks
from darkroom_worker.webhooks import Outcome, Resolver, Sender
from tests.hostile_urls import HOSTILE_ANSWERS, HOSTILE_URLS, PUBLIC_V4
from tests.receivers import (
    FakeResolver,
    Receiver,
    RecordingBackend,
    answering,
    http,
    listening,
)

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
BODY = json.dumps({"type": "job.succeeded", "data": {"name": "Dünen"}}).encode()
ID = "msg_018f"
LOOPBACK = parse_networks(["127.0.0.0/8", "::1/128"])
BOTH = ("127.0.0.1", "::1")
NEVER = 3600.0
GENEROUS = 30.0


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


async def send(
    url: str, sender: Sender | None = None, secrets: Sequence[str] = (SECRET,)
) -> Outcome:
    """Make one attempt, on loopback unless the sender says otherwise."""
    sender = sender or Sender(LOOPBACK, limit=GENEROUS)
    return await sender.send(url, ID, BODY, secrets, time.time())


def port_for_anyone() -> int:
    """Find a port, free on 127.0.0.1 and ::1, at which public hosts are reached too."""
    for port in range(8100, 9000):
        with (
            suppress(OSError),
            socket.create_server(("127.0.0.1", port)),
            socket.create_server(("::1", port), family=socket.AF_INET6),
        ):
            return port
    pytest.fail("no free port")


@asynccontextmanager
async def trap() -> AsyncIterator[Receiver]:
    """Listen on 127.0.0.1 and ::1 where a webhook that got past a check would arrive."""
    async with answering(http("200 OK"), hosts=BOTH, port=port_for_anyone()) as receiver:
        yield receiver


# What arrives


@in_loop
async def test_what_a_receiver_gets() -> None:
    """One POST with the body byte for byte, a JSON type, our name, and headers that verify."""
    async with answering(http("204 No Content")) as receiver:
        outcome = await send(receiver.url)
    assert outcome.delivered
    assert (outcome.status, outcome.error, outcome.excerpt) == (204, None, "")
    assert 0 < outcome.latency_ms < GENEROUS * 1000
    (got,) = receiver.requests
    assert got.line == "POST /hook?a=1 HTTP/1.1"
    assert got.body == BODY
    assert got.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["user-agent"] == "Darkroom-Webhooks/1"
    assert got.headers["webhook-id"] == ID
    assert set(got.headers) == {
        *("host", "user-agent", "accept", "accept-encoding", "connection"),
        *("content-type", "content-length"),
        *("webhook-id", "webhook-timestamp", "webhook-signature"),
    }
    event = standardwebhooks.Webhook(SECRET).verify(got.body, got.headers)
    assert event == json.loads(BODY)


@in_loop
async def test_rotated_secrets_arrive() -> None:
    """While secrets are rotated a receiver with either of them can verify."""
    other = "whsec_" + base64.b64encode(bytes(64)).decode()
    async with answering(http("200 OK")) as receiver:
        await send(receiver.url, secrets=[other, SECRET])
    for secret in (other, SECRET):
        standardwebhooks.Webhook(secret).verify(BODY, receiver.requests[0].headers)


@in_loop
async def test_without_a_secret() -> None:
    """Where no secret is configured the message goes unsigned rather than falsely signed."""
    async with answering(http("200 OK")) as receiver:
        assert (await send(receiver.url, secrets=[])).delivered
    assert "webhook-signature" not in receiver.requests[0].headers


@in_loop
async def test_a_defect_of_ours_is_not_the_receivers() -> None:
    """A message that cannot be signed raises instead of being counted as a failed delivery."""
    sender = Sender(LOOPBACK)
    with pytest.raises(ValueError, match="webhook-id"):
        await sender.send("http://127.0.0.1:1/", "a.b", BODY, [SECRET], time.time())
    with pytest.raises(ValueError, match="whsec_"):
        await sender.send("http://127.0.0.1:1/", ID, BODY, ["secret"], time.time())


# What receivers answer


@pytest.mark.parametrize(
    ("status", "delivered"),
    [
        *[("200 OK", True), ("202 Accepted", True), ("204 No Content", True), ("299 Odd", True)],
        *[("400 Bad", False), ("404 Not Found", False), ("500 Oops", False), ("599 X", False)],
    ],
)
@in_loop
async def test_statuses(status: str, delivered: bool) -> None:
    """Only 2xx is delivered; any other status is told, with how the body begins."""
    body = b"" if status.startswith("204") else b"why: \xff\x1b[31m " + b"x" * 2000
    async with answering(http(status, body)) as receiver:
        outcome = await send(receiver.url)
    assert outcome.delivered is delivered
    assert outcome.status == int(status[:3])
    assert (outcome.error is None) is delivered
    assert not outcome.permanent
    assert not outcome.gone
    if body:
        assert outcome.excerpt.startswith("why: \ufffd\ufffd[31m xxx")
        assert len(outcome.excerpt) == 512


@in_loop
async def test_gone() -> None:
    """410 says that the receiver wants no more."""
    async with answering(http("410 Gone")) as receiver:
        outcome = await send(receiver.url)
    assert outcome.gone
    assert not outcome.delivered


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
@in_loop
async def test_asked_to_wait(status: str) -> None:
    """Retry-After is read in both of its forms."""
    async with answering(http(status, Retry_After="7")) as receiver:
        assert (await send(receiver.url)).retry_after == 7
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 600))
    async with answering(http(status, Retry_After=later)) as receiver:
        seconds = (await send(receiver.url)).retry_after
    assert seconds is not None
    assert 500 < seconds <= 600


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@in_loop
async def test_redirects_lead_nowhere(status: int) -> None:
    """A redirect to an address inside is a failure, and nothing is sent there."""
    async with trap() as inside:
        location = f"http://127.0.0.1:{inside.port}/admin"
        async with answering(http(f"{status} Moved", Location=location)) as receiver:
            outcome = await send(receiver.url)
    assert outcome.status == status
    assert outcome.error == f"the receiver answered {status}; redirects are not followed"
    assert not outcome.permanent
    assert (receiver.connections, inside.connections) == (1, 0)


@in_loop
async def test_cookies_are_not_kept() -> None:
    """What one receiver sets is not sent to it, or to another, the next time."""
    sender = Sender(LOOPBACK)
    async with answering(http("200 OK", Set_Cookie="a=b; Path=/")) as receiver:
        await send(receiver.url, sender)
        await send(receiver.url, sender)
    assert receiver.connections == 2
    assert "cookie" not in receiver.requests[1].headers


# Receivers that misbehave


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "closed the connection|does not speak HTTP: Server disconnected"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 abc OK\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 2", "closed the connection|does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nA\x00b: c\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000, "65536 bytes|does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 50_000, "65536 bytes|does not speak HTTP"),
        (b"HTTP/1.1 103 Hints\r\n\r\n" * 20_000, "65536 bytes"),
        (b"\x15\x03\x01\x00\x02\x02\x28", "does not speak HTTP|closed the connection"),
    ],
)
@in_loop
async def test_answers_that_are_none(raw: bytes, words: str) -> None:
    """What is not HTTP, breaks off or never ends is a failure that may pass, told in words."""
    async with answering(raw) as receiver:
        outcome = await send(receiver.url)
    assert not outcome.delivered
    assert outcome.status is None
    assert not outcome.permanent
    assert outcome.error is not None
    assert outcome.error.isprintable()
    assert any(each in outcome.error for each in words.split("|")), outcome.error


@pytest.mark.parametrize(
    "answer",
    [
        http("200 OK", b"x" * 5_000_000),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"5\r\nxxxxx\r\n" * 200_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxx\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nxx",
        b"HTTP/1.0 200 OK\r\n\r\nxx",
        http("200 OK", b"\x1f\x8b" + bytes(64), Content_Encoding="gzip"),
    ],
)
@in_loop
async def test_bodies_change_nothing(answer: bytes) -> None:
    """Once the status is there the message is delivered, however long or broken the body."""
    async with answering(answer) as receiver:
        outcome = await send(receiver.url)
    assert outcome.delivered
    assert len(outcome.excerpt) <= 512


@in_loop
async def test_a_huge_body_is_not_read() -> None:
    """Of a body that never ends no more than a few kilobytes are taken."""
    receiver, backend = Receiver(), RecordingBackend()

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await receiver.read(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        finally:
            receiver.left.set()

    async with listening(pour, receiver=receiver):
        outcome = await send(receiver.url, Sender(LOOPBACK, backend=backend))
        assert outcome.delivered
        async with asyncio.timeout(GENEROUS):
            await receiver.left.wait()
    assert backend.bytes_read <= 8192


@in_loop
async def test_a_reset() -> None:
    """A receiver that resets the connection is told from one that is not there."""
    receiver = Receiver()

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await receiver.read(reader)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        writer.transport.abort()

    async with listening(reset, receiver=receiver):
        outcome = await send(receiver.url)
    assert outcome.error == "the receiver reset the connection"
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    outcome = await send(url)
    assert outcome.error == "the connection was refused"
    assert not outcome.permanent


@in_loop
async def test_a_receiver_that_says_nothing() -> None:
    """An attempt ends when its time is over, and its connection with it."""
    async with listening() as receiver:
        outcome = await send(receiver.url, Sender(LOOPBACK, limit=0.2))
        assert outcome.error == "no answer within 0.2 s; it ended while waiting for the answer"
        assert not outcome.permanent
        async with asyncio.timeout(GENEROUS):
            await receiver.left.wait()


@in_loop
async def test_a_receiver_that_never_finishes_tls() -> None:
    """The connection is closed too if the time is over before TLS has begun."""
    async with listening() as receiver:
        url = f"https://127.0.0.1:{receiver.port}/"
        outcome = await send(url, Sender(LOOPBACK, limit=0.2))
        assert outcome.error == "no answer within 0.2 s; it ended while waiting for the answer"
        async with asyncio.timeout(GENEROUS):
            await receiver.left.wait()


@in_loop
async def test_a_name_that_is_never_resolved() -> None:
    """The time for an attempt counts from before its name is looked up."""

    class Silent:
        async def resolve(self, host: str) -> Sequence[str]:  # noqa: ARG002
            await asyncio.get_running_loop().create_future()
            return ()

    outcome = await send("http://example.com/", Sender((), Silent(), limit=0.2))
    assert outcome.error == "no answer within 0.2 s; it ended while looking up the name"


@in_loop
async def test_a_sender_that_is_stopped_lets_go() -> None:
    """An attempt that is cancelled closes its connection."""
    async with listening() as receiver:
        attempt = asyncio.create_task(send(receiver.url, Sender(LOOPBACK, limit=NEVER)))
        async with asyncio.timeout(GENEROUS):
            await receiver.connected.wait()
            attempt.cancel()
            with pytest.raises(asyncio.CancelledError):
                await attempt
            await receiver.left.wait()


def dripping(head: bytes, drip: bytes) -> Callable[[Receiver], Any]:
    """Make a receiver that sends some bytes at once and then, without end, one after another."""

    def make(receiver: Receiver) -> Callable[..., Awaitable[None]]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await receiver.read(reader)
            writer.write(head)
            while True:
                writer.write(drip)
                await writer.drain()
                await asyncio.sleep(0.01)  # the pace, far quicker than any limit between bytes

        return answer

    return make


@in_loop
async def test_a_slow_head() -> None:
    """A receiver that sends its headers byte by byte cannot hold an attempt beyond its time."""
    receiver = Receiver()
    drip = dripping(b"HTTP/1.1 200 OK\r\nX: ", b"a")(receiver)
    async with listening(drip, receiver=receiver):
        async with asyncio.timeout(GENEROUS):
            outcome = await send(receiver.url, Sender(LOOPBACK, limit=0.5))
    assert outcome.error == "no answer within 0.5 s; it ended while waiting for the answer"


@in_loop
async def test_a_slow_body() -> None:
    """A receiver that sends its body byte by byte has got the message, and is left."""
    receiver = Receiver()
    drip = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"a")(receiver)
    async with listening(drip, receiver=receiver):
        async with asyncio.timeout(GENEROUS):
            outcome = await send(receiver.url, Sender(LOOPBACK, limit=0.5))
    assert outcome.delivered
    assert set(outcome.excerpt) == {"a"}


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Make an authority that only these tests trust."""
    return trustme.CA()


def serving(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """Make a TLS server's context with a certificate for these names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def trusting(authority: trustme.CA, resolver: Resolver | None = None) -> Sender:
    """Make a sender that trusts this authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return Sender(LOOPBACK, resolver, ssl_context=context, limit=GENEROUS)


@in_loop
async def test_tls_keeps_the_name(authority: trustme.CA) -> None:
    """The connection goes to the checked address; Host, SNI and certificate are by the name."""
    context = serving(authority, "receiver.internal")
    asked: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    resolver = FakeResolver({"receiver.internal": [["127.0.0.1"]]})
    async with answering(http("200 OK"), tls=context) as receiver:
        url = f"https://receiver.internal:{receiver.port}/"
        outcome = await send(url, trusting(authority, resolver))
    assert outcome.delivered, outcome.error
    assert asked == ["receiver.internal"]
    assert receiver.requests[0].headers["host"] == f"receiver.internal:{receiver.port}"
    assert resolver.asked == ["receiver.internal"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@in_loop
async def test_tls_to_an_address(authority: trustme.CA, host: str) -> None:
    """A certificate for an address serves a URL with that address."""
    async with answering(http("200 OK"), tls=serving(authority, host), hosts=[host]) as receiver:
        literal = f"[{host}]" if ":" in host else host
        outcome = await send(f"https://{literal}:{receiver.port}/", trusting(authority))
    assert outcome.delivered, outcome.error
    assert receiver.requests[0].headers["host"] == f"{literal}:{receiver.port}"


@pytest.mark.parametrize(
    ("name", "words"),
    [("other.internal", "Hostname mismatch"), ("receiver.internal", "unable to get local issuer")],
)
@in_loop
async def test_certificates_that_do_not_fit(authority: trustme.CA, name: str, words: str) -> None:
    """A certificate for another name, or from an unknown authority, gets no message."""
    resolver = FakeResolver({"receiver.internal": [["127.0.0.1"]]})
    sender = (
        Sender(LOOPBACK, resolver, limit=GENEROUS)
        if "issuer" in words
        else trusting(authority, resolver)
    )
    async with answering(http("200 OK"), tls=serving(authority, name)) as receiver:
        outcome = await send(f"https://receiver.internal:{receiver.port}/", sender)
    assert outcome.error is not None
    assert outcome.error.startswith("TLS: the certificate is not valid: ")
    assert words in outcome.error
    assert receiver.requests == []


@in_loop
async def test_tls_and_plain_do_not_mix(authority: trustme.CA) -> None:
    """`https` to a plain receiver, and `http` to one with TLS, are failures told in words."""
    async with answering(http("200 OK")) as receiver:
        async with asyncio.timeout(GENEROUS):
            outcome = await send(f"https://127.0.0.1:{receiver.port}/", Sender(LOOPBACK, limit=0.5))
    assert outcome.error is not None
    assert outcome.status is None
    async with answering(http("200 OK"), tls=serving(authority, "127.0.0.1")) as receiver:
        outcome = await send(f"http://127.0.0.1:{receiver.port}/")
    assert outcome.error is not None
    assert receiver.requests == []


# The guard against requests to the inside


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f000001",
        "127.1",
        "[::ffff:7f00:1]",
    ],
)
@in_loop
async def test_the_trap_hears_a_client_without_guard(host: str) -> None:
    """A client without guard is led there by such URLs: silence elsewhere means something."""
    async with trap() as inside, httpx.AsyncClient(trust_env=False, timeout=GENEROUS) as client:
        await client.post(f"http://{host}:{inside.port}/")
    assert inside.connections == 1


@in_loop
async def test_the_trap_hears_our_sender_where_allowed() -> None:
    """The same sender, resolver and listener do meet where loopback is allowed."""
    resolver = FakeResolver({}, default=BOTH)
    backend = RecordingBackend()
    async with trap() as inside:
        for host in ("localhost", "127.0.0.1", "[::1]", "example.com"):
            sender = Sender(LOOPBACK, resolver, backend=backend)
            outcome = await send(f"http://{host}:{inside.port}/", sender)
            assert outcome.delivered, outcome.error
    assert inside.connections == 4
    assert resolver.asked == ["example.com"]
    assert [host for host, _ in backend.asked] == ["127.0.0.1", "127.0.0.1", "::1", "127.0.0.1"]


@in_loop
async def test_hostile_urls_reach_nothing() -> None:
    """No URL of the corpus is looked up or connected to, though its name would lead to loopback."""
    resolver = FakeResolver({}, default=BOTH)
    backend = RecordingBackend()
    async with trap() as inside:
        sender = Sender((), resolver, backend=backend)
        for url in HOSTILE_URLS:
            outcome = await send(url.replace("PORT", str(inside.port)), sender)
            assert outcome.permanent, url
            assert outcome.error is not None
            assert outcome.error.startswith("the URL is not allowed: ")
            assert not outcome.delivered
            assert outcome.status is None
    assert len(HOSTILE_URLS) >= 60
    assert resolver.asked == []
    assert backend.asked == []
    assert inside.connections == 0


@in_loop
async def test_hostile_dns_answers_reach_nothing() -> None:
    """A name with one forbidden address among its addresses is not connected to, at any of them."""
    backend, context = RecordingBackend(), ssl.create_default_context()
    async with trap() as inside:
        for answers in HOSTILE_ANSWERS:
            resolver = FakeResolver({"hooks.example.com": [answers]})
            sender = Sender((), resolver, backend=backend, ssl_context=context)
            outcome = await send(f"http://hooks.example.com:{inside.port}/", sender)
            assert outcome.permanent, answers
            assert outcome.error is not None
            assert "may not go to" in outcome.error
            assert not any(answer in outcome.error for answer in answers)
            assert resolver.asked == ["hooks.example.com"]
    assert len(HOSTILE_ANSWERS) >= 40
    assert backend.asked == []
    assert inside.connections == 0


@in_loop
async def test_rebinding() -> None:
    """A name that was public when it was checked cannot be loopback when it is connected to."""
    backend = RecordingBackend()
    resolver = FakeResolver({"rebind.example.com": [[PUBLIC_V4], ["127.0.0.1"]]})
    async with trap() as inside:
        sender = Sender((), resolver, backend=backend)
        url = f"http://rebind.example.com:{inside.port}/"
        first = await send(url, sender)
        assert backend.asked == [(PUBLIC_V4, inside.port)]
        assert resolver.asked == ["rebind.example.com"]
        assert first.error == "the connection failed: tests make no connections to other machines"
        assert not first.permanent
        second = await send(url, sender)
        assert second.permanent
        assert len(backend.asked) == 1
    assert inside.connections == 0


@in_loop
async def test_another_address_is_tried() -> None:
    """Where one address of a name refuses the connection, the next is tried."""
    async with answering(http("200 OK")) as receiver:
        resolver = FakeResolver({"two.internal": [["127.0.0.2", "127.0.0.1"]]})
        backend = RecordingBackend()
        sender = Sender(LOOPBACK, resolver, backend=backend)
        outcome = await send(f"http://two.internal:{receiver.port}/", sender)
    assert outcome.delivered, outcome.error
    assert [host for host, _ in backend.asked] == ["127.0.0.2", "127.0.0.1"]


@in_loop
async def test_a_name_without_address_may_get_one() -> None:
    """A name that cannot be resolved is a failure that may pass."""
    outcome = await send("http://example.com/", Sender((), FakeResolver({})))
    assert outcome.error == "example.com cannot be resolved: Name or service not known"
    assert not outcome.permanent


@in_loop
async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would look names up by itself; what the environment says of one is not heeded."""
    async with trap() as proxy, answering(http("200 OK")) as receiver:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", "")
        monkeypatch.setenv("no_proxy", "")
        assert (await send(receiver.url)).delivered
    assert proxy.connections == 0


# Many at once


def open_files() -> int:
    """Count this process's open files, where the system tells."""
    listing = Path("/proc/self/fd")
    return len(list(listing.iterdir())) if listing.is_dir() else 0


@in_loop
async def test_dead_receivers_delay_nobody() -> None:
    """With 200 messages held by receivers that say nothing, 1,000 others are delivered."""
    receiver, all_in, release = Receiver(), asyncio.Event(), asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await receiver.read(reader)
        if len(receiver.requests) == 200:
            all_in.set()
        await release.wait()
        writer.write(http("200 OK"))
        await writer.drain()

    sender = Sender(LOOPBACK, limit=NEVER)
    before = open_files()
    async with listening(hang, receiver=receiver), answering(http("200 OK")) as quick:
        held = [asyncio.create_task(send(receiver.url, sender)) for _ in range(200)]
        await all_in.wait()
        outcomes = await asyncio.gather(*(send(quick.url, sender) for _ in range(1000)))
        assert all(outcome.delivered for outcome in outcomes)
        assert not any(task.done() for task in held)
        release.set()
        assert all(outcome.delivered for outcome in await asyncio.gather(*held))
    assert quick.connections == 1000
    assert open_files() < before + 100, "connections were left open"
