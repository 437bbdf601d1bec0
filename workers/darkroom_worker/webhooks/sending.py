"""One attempt to send a webhook."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress

import httpcore

from darkroom_infra.callbacks import CallbackUrl, CallbackUrlError, Network, parse_callback_url
from darkroom_infra.telemetry import get_logger
from darkroom_wire.webhooks import ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, sign

from .connecting import READ_BYTES, BoundedStream, NoAnswerError, PinnedBackend
from .faults import TRANSPORT_FAULTS, describe
from .outcomes import EXCERPT_BYTES, Outcome, answered
from .resolving import ForbiddenAddressError, Resolver, SystemResolver, reachable_addresses

LIMIT_SECONDS = 15.0
BODY_SECONDS = 5.0
USER_AGENT = "Darkroom-Webhooks/1"

Headers = list[tuple[bytes, bytes]]

_log = get_logger("webhooks")


class Sender:
    """Sends webhooks, as many at once as are asked for.

    Each attempt has a connection of its own, straight to an address that was checked: there is no
    pool to wait for, no proxy, no redirect, no cookie, nothing from the environment. TLS is
    verified against the name in the URL.

    For use in one event loop.
    """

    def __init__(
        self,
        allow: Sequence[Network],
        resolver: Resolver | None = None,
        *,
        limit: float = LIMIT_SECONDS,
        ssl_context: ssl.SSLContext | None = None,
        backend: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        """Take what does not change from one attempt to the next.

        Args:
            allow: networks that may be reached although they are not public.
            resolver: looks names up; the system's by default.
            limit: how many seconds an attempt may take, whatever the receiver does.
            ssl_context: whom to trust; the usual authorities by default.
            backend: opens connections to addresses; the network by default.
        """
        self._allow = tuple(allow)
        self._resolver = resolver or SystemResolver()
        self._limit = limit
        self._ssl_context = ssl_context or httpcore.default_ssl_context()
        self._backend = backend or httpcore.AnyIOBackend()

    async def send(
        self, url: str, message_id: str, body: bytes, secrets: Sequence[str], at: float
    ) -> Outcome:
        """Make one attempt. What the receiver or the network does wrong is told in the outcome.

        Args:
            url: where to.
            message_id: tells the message from others, the same at every attempt.
            body: the event as JSON, byte for byte.
            secrets: what signs it; without any, it goes unsigned.
            at: the time of the attempt, in Unix seconds.

        Raises:
            ValueError: the message id or a secret has another form.
        """
        signed = _signed_headers(message_id, body, secrets, int(at))
        started = time.monotonic()
        permanent = False
        try:
            target = parse_callback_url(url, self._allow)
            return await self._attempt(target, signed, body, at)
        except CallbackUrlError as error:
            permanent, words = True, f"the URL is not allowed: {error}"
        except ForbiddenAddressError as error:
            permanent, words = True, describe(error)
            addresses = [str(address) for address in error.addresses]
            _log.warning("webhooks.forbidden", host=error.host, addresses=addresses)
        except TRANSPORT_FAULTS as error:
            words = describe(error)
        latency = (time.monotonic() - started) * 1000
        return Outcome(False, None, latency, error=words, permanent=permanent)

    async def _attempt(
        self, target: CallbackUrl, signed: Headers, body: bytes, at: float
    ) -> Outcome:
        """Look up, connect, send, and read how the answer begins."""
        started = time.monotonic()
        backend = PinnedBackend(self._backend)
        try:
            async with asyncio.timeout(self._limit):
                backend.addresses = await reachable_addresses(target, self._resolver, self._allow)
                response = await self._exchange(target, signed, body, backend)
            latency = time.monotonic() - started
            patience = min(BODY_SECONDS, self._limit - latency)
            excerpt = await _read_excerpt(response, backend.stream, patience)
        except TimeoutError:
            raise NoAnswerError(
                f"no answer within {self._limit:g} s; it ended while {backend.step}"
            ) from None
        finally:
            await backend.aclose()
        return answered(response.status, response.headers, excerpt, latency * 1000, at + latency)

    async def _exchange(
        self, target: CallbackUrl, signed: Headers, body: bytes, backend: PinnedBackend
    ) -> httpcore.Response:
        """Send the request over a new connection; return once the answer's headers are there."""
        scheme, host = target.scheme.encode(), target.host.encode()
        connection = httpcore.AsyncHTTPConnection(
            httpcore.Origin(scheme, host, target.port), self._ssl_context, network_backend=backend
        )
        request = httpcore.Request(
            b"POST",
            httpcore.URL(scheme=scheme, host=host, port=target.port, target=target.target.encode()),
            headers=[
                (b"Host", target.authority.encode()),
                (b"User-Agent", USER_AGENT.encode()),
                (b"Accept", b"*/*"),
                (b"Accept-Encoding", b"identity"),
                (b"Connection", b"close"),
                (b"Content-Type", b"application/json"),
                (b"Content-Length", str(len(body)).encode()),
                *signed,
            ],
            content=body,
        )
        return await connection.handle_async_request(request)


async def _read_excerpt(
    response: httpcore.Response, stream: BoundedStream | None, seconds: float
) -> bytes:
    """Read how the body begins. The status is known: whatever happens now is no fault."""
    if stream is not None:
        stream.left = min(stream.left, READ_BYTES)
    excerpt = bytearray()
    with suppress(*TRANSPORT_FAULTS):
        async with asyncio.timeout(seconds):
            async for part in response.aiter_stream():
                excerpt += part[: EXCERPT_BYTES - len(excerpt)]
    return bytes(excerpt)


def _signed_headers(
    message_id: str, body: bytes, secrets: Sequence[str], timestamp: int
) -> Headers:
    headers = {ID_HEADER: message_id, TIMESTAMP_HEADER: str(timestamp)}
    if secrets:
        headers[SIGNATURE_HEADER] = sign(secrets, message_id, timestamp, body)
    return [(name.encode(), value.encode()) for name, value in headers.items()]
