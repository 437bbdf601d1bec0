"""A line between two parts that can be disturbed: delayed, slowed, cut, silenced, falsified.

It forwards bytes and knows of what it carries, S3 or Redis, only where a request begins.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from tests.faults.ports import take_port

CHUNK = 64 * 1024
HTTP = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ")
REDIS = (b"*",)
"""How a request begins."""

HOST = "127.0.0.1"

Rewrite = Callable[[], Callable[[bytes], bytes]]
"""Makes, for each connection, what sees each piece of its answers and may replace it."""

_ERROR = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>%s</Code><Message>injected</Message></Error>"""
_CODES = {500: b"InternalError", 503: b"SlowDown", 507: b"InsufficientStorage"}


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a line. Sizes count bytes of one request or of its answer.

    Attributes:
        away: nobody listens: every connection is closed at once.
        silent: bytes are taken and nothing comes back.
        delay: seconds before each piece of an answer.
        rate: bytes a second in each direction.
        answer: the HTTP status that answers each request instead of the server.
        cut_request_after: the connection breaks when so much of a request has been sent.
        cut_answer_after: it breaks when so much of the answer has come; 0: before the first byte.
        where: only requests that begin with these bytes are disturbed.
        times: so many requests are disturbed, then no more.
    """

    away: bool = False
    silent: bool = False
    delay: float = 0.0
    rate: int | None = None
    answer: int | None = None
    cut_request_after: int | None = None
    cut_answer_after: int | None = None
    where: bytes = b""
    times: int | None = None


HEALTHY = Trouble()


@dataclass
class Counts:
    """What went over a line."""

    connections: int = 0
    requests: int = 0
    disturbed: int = 0
    sent: int = 0
    received: int = 0


@dataclass
class _Request:
    """How the request that is under way on a connection fares."""

    trouble: Trouble = HEALTHY
    sent: int = 0
    answered: int = 0


@dataclass(eq=False)
class _Link:
    """One connection with both its ends."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    request: _Request = field(default_factory=_Request)

    def close(self) -> None:
        for end in (self.client, self.server):
            if end is not None:
                end.transport.abort()


class Proxy:
    """Listens on a port of its own and forwards to another, in a thread of its own."""

    def __init__(self, target_port: int, begins: tuple[bytes, ...] = HTTP) -> None:
        self.port = take_port()
        self._begins = begins
        self.counts = Counts()
        self._target_port = target_port
        self._rewrite: Rewrite | None = None
        self._trouble = HEALTHY
        self._left: int | None = None
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._call(self._listen())

    @property
    def url(self) -> str:
        """Its address for HTTP."""
        return f"http://{HOST}:{self.port}"

    def rewrite(self, rewrite: Rewrite | None) -> None:
        """Have the answers on every new connection rewritten, or not any more."""
        self._rewrite = rewrite

    def disturb(self, trouble: Trouble, *, cut: bool = True) -> None:
        """Have this trouble from now on; connections that stand are cut, or else live with it."""
        self._call(self._set(trouble, cut))

    def heal(self) -> None:
        """Have no trouble any more. Connections that were held up are cut."""
        self.disturb(HEALTHY)

    def close(self) -> None:
        """Stop listening, and cut everything."""
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine: Any) -> None:
        future: Future[None] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        future.result(30)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, self.port, limit=4 * CHUNK)

    async def _set(self, trouble: Trouble, cut: bool) -> None:
        self._trouble, self._left = trouble, trouble.times
        if cut:
            for link in list(self._links):
                link.close()

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        for link in list(self._links):
            link.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        if self._trouble.away:
            link.close()
            return
        self.counts.connections += 1
        self._links.add(link)
        try:
            other, link.server = await asyncio.open_connection(
                HOST, self._target_port, limit=4 * CHUNK
            )
            forth = asyncio.create_task(self._forward(link, reader))
            back = asyncio.create_task(self._bring_back(link, other))
            done, rest = await asyncio.wait({forth, back}, return_when=asyncio.FIRST_COMPLETED)
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            # What a rewrite of the answers raises is a defect of the test, and shows in its log.
            await asyncio.gather(*done)
        except (OSError, asyncio.CancelledError):
            pass  # the server is away, and so is the line; or the line is closed
        finally:
            self._links.discard(link)
            link.close()

    async def _forward(self, link: _Link, reader: asyncio.StreamReader) -> None:
        assert link.server is not None
        while piece := await reader.read(CHUNK):
            if piece.startswith(self._begins) or not link.request.sent:
                self.counts.requests += 1
                link.request = _Request(self._choose(piece))
            request, trouble = link.request, link.request.trouble
            limit = trouble.cut_request_after
            rest = len(piece) if limit is None else limit - request.sent
            request.sent += len(piece)
            self.counts.sent += len(piece)
            if trouble.silent:
                continue
            if trouble.answer is not None:
                await self._refuse(link, reader, piece, trouble.answer)
                return
            await _write(link.server, piece[:rest], trouble.rate)
            if rest < len(piece):
                return

    async def _bring_back(self, link: _Link, reader: asyncio.StreamReader) -> None:
        rewrite = self._rewrite() if self._rewrite else None
        while piece := await reader.read(CHUNK):
            request, trouble = link.request, link.request.trouble
            if trouble.silent:
                continue
            if trouble.delay:
                await asyncio.sleep(trouble.delay)
            limit = trouble.cut_answer_after
            rest = len(piece) if limit is None else limit - request.answered
            request.answered += len(piece)
            self.counts.received += len(piece)
            await _write(
                link.client, rewrite(piece[:rest]) if rewrite else piece[:rest], trouble.rate
            )
            if rest < len(piece):
                return

    def _choose(self, start: bytes) -> Trouble:
        """Decide how the request fares that begins so."""
        trouble = self._trouble
        if trouble is HEALTHY or not start.startswith(trouble.where) or self._left == 0:
            return HEALTHY
        if self._left is not None:
            self._left -= 1
        self.counts.disturbed += 1
        return trouble

    async def _refuse(
        self, link: _Link, reader: asyncio.StreamReader, start: bytes, status: int
    ) -> None:
        """Answer in the server's place, once the request has come."""
        head, _, body = start.partition(b"\r\n\r\n")
        fields = dict(
            line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line
        )
        missing = int(fields.get(b"content-length", b"0")) - len(body)
        if b"100-continue" not in fields.get(b"expect", b""):
            while missing > 0 and (piece := await reader.read(CHUNK)):
                missing -= len(piece)
        text = b"" if start.startswith(b"HEAD ") else _ERROR % _CODES[status]
        link.client.write(
            b"HTTP/1.1 %d Injected\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n"
            b"Connection: close\r\n\r\n%s" % (status, len(text), text)
        )
        await link.client.drain()
        # An abort could overtake the answer.
        link.client.close()
        await link.client.wait_closed()


async def _write(writer: asyncio.StreamWriter, piece: bytes, rate: int | None) -> None:
    """Send a piece, at once or so many bytes a second."""
    if rate is None:
        writer.write(piece)
        await writer.drain()
        return
    step = max(1, rate // 10)
    for start in range(0, len(piece), step):
        writer.write(piece[start : start + step])
        await writer.drain()
        await asyncio.sleep(step / rate)
