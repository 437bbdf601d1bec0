"""Receivers of webhooks for tests: real listeners that record what comes, and say what they like.

`FakeResolver` stands in for the DNS, which tests cannot control, with the contract of the real one.
`RecordingBackend` makes real connections, but only to this machine, and records what was asked.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address

import httpcore

from darkroom_worker.webhooks import ResolveError
from darkroom_worker.webhooks.connecting import BoundedStream

LOOPBACK = "127.0.0.1"
_PLENTY = 1 << 40


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    line: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Receiver:
    """A listener: its port, how many connections it took, which requests came, which ended."""

    port: int = 0
    connections: int = 0
    requests: list[Received] = field(default_factory=list)
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """The sender closed a connection."""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{LOOPBACK}:{self.port}/hook?a=1"

    async def read(self, reader: asyncio.StreamReader) -> Received:
        """Read a whole request and record it."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *lines = head.strip().split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (each.partition(":") for each in lines)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        received = Received(line, headers, body)
        self.requests.append(received)
        return received


@asynccontextmanager
async def listening(
    answer: Answer | None = None,
    *,
    hosts: Iterable[str] = (LOOPBACK,),
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    receiver: Receiver | None = None,
) -> AsyncIterator[Receiver]:
    """Listen, and do with each connection what `answer` does; nothing by default."""
    here = receiver or Receiver()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        here.connections += 1
        here.connected.set()
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                if answer is not None:
                    await answer(reader, writer)
                else:
                    while await reader.read(1024):
                        pass
                    here.left.set()
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            tasks.discard(task)
            writer.close()

    async with AsyncExitStack() as stack:
        for host in hosts:
            server = await asyncio.start_server(
                serve, host, here.port or port, backlog=4096, ssl=tls
            )
            stack.callback(server.close)
            here.port = server.sockets[0].getsockname()[1]
        try:
            yield here
        finally:
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks)


@asynccontextmanager
async def answering(
    response: bytes,
    *,
    hosts: Iterable[str] = (LOOPBACK,),
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Receiver]:
    """Listen, read each request and answer it with these bytes."""
    here = Receiver()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await here.read(reader)
        writer.write(response)
        await writer.drain()

    async with listening(answer, hosts=hosts, port=port, tls=tls, receiver=here):
        yield here


def http(status: str, body: bytes = b"", **headers: str) -> bytes:
    """Write an HTTP answer."""
    fields = {"Content-Length": str(len(body)), **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode() + body


class FakeResolver:
    """Answers from a table; a name's answers in turn, the last for good."""

    def __init__(
        self, answers: Mapping[str, Sequence[Sequence[str]]], default: Sequence[str] = ()
    ) -> None:
        self.asked: list[str] = []
        self._answers = answers
        self._default = default

    async def resolve(self, host: str) -> Sequence[str]:
        """Give the next answer for a name, as the resolver of the service would."""
        turn = self.asked.count(host)
        self.asked.append(host)
        answers = self._answers.get(host, (self._default,))
        found = answers[min(turn, len(answers) - 1)]
        if not found:
            raise ResolveError(f"{host} cannot be resolved: Name or service not known")
        return found


class RecordingBackend(httpcore.AnyIOBackend):
    """Records where connections are asked for, and makes those to this machine."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.streams: list[BoundedStream] = []

    @property
    def bytes_read(self) -> int:
        """How much was read from all connections."""
        return sum(_PLENTY - stream.left for stream in self.streams)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect, if it is to this machine."""
        self.asked.append((host, port))
        if not ip_address(host).is_loopback:
            raise httpcore.ConnectError("tests make no connections to other machines")
        stream = await super().connect_tcp(host, port, timeout, local_address, socket_options)
        self.streams.append(BoundedStream(stream, _PLENTY))
        return self.streams[-1]
