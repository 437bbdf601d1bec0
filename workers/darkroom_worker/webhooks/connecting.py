"""Connections to addresses that have been checked, from which only so much is read."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Sequence
from typing import Any

import httpcore

from darkroom_infra.callbacks import Address

CONNECT_SECONDS = 10.0
ANSWER_BYTES = 64 * 1024
READ_BYTES = 4 * 1024


class AnswerTooLongError(Exception):
    """An answer of which more was sent than will be read."""


class NoAnswerError(Exception):
    """The time for an attempt is over. The text says how far it came."""


class BoundedStream(httpcore.AsyncNetworkStream):
    """A connection from which `left` more bytes are read at most."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, left: int = ANSWER_BYTES) -> None:
        self.left = left
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Read what is there, at most 4 KiB at a time.

        Raises:
            AnswerTooLongError: all that may be read has been.
        """
        if self.left <= 0:
            raise AnswerTooLongError
        data = await self._stream.read(min(max_bytes, self.left, READ_BYTES), timeout)
        self.left -= len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Write all of it."""
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        """Go on in TLS, in the name that the URL has, on this same object."""
        self._stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        return self

    def get_extra_info(self, info: str) -> Any:
        """Tell what is known of the connection."""
        return self._stream.get_extra_info(info)


class PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connects to the addresses it was given, whatever the name: nothing is looked up again.

    One for each attempt. Keeps the connection, so that it can be closed whatever happens.
    """

    def __init__(self, inner: httpcore.AsyncNetworkBackend) -> None:
        self.addresses: Sequence[Address] = ()
        """Where to connect; none until they have been found and checked."""
        self.stream: BoundedStream | None = None
        self._inner = inner

    @property
    def step(self) -> str:
        """How far the attempt has come, in words."""
        if self.stream is not None:
            return "waiting for the answer"
        return "connecting" if self.addresses else "looking up the name"

    async def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - the addresses stand for it
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> BoundedStream:
        """Connect to the first address that takes the connection; they share the time.

        Raises:
            httpcore.ConnectError: none did.
            httpcore.ConnectTimeout: none did, and the last did not answer.
        """
        end = time.monotonic() + (CONNECT_SECONDS if timeout is None else timeout)
        fault: httpcore.ConnectError | httpcore.ConnectTimeout = httpcore.ConnectError("no address")
        for index, address in enumerate(self.addresses):
            share = max(0.0, end - time.monotonic()) / (len(self.addresses) - index)
            try:
                stream = await self._inner.connect_tcp(
                    str(address), port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                fault = error
            else:
                self.stream = BoundedStream(stream)
                return self.stream
        raise fault

    async def aclose(self) -> None:
        """Close the connection, if there is one."""
        if self.stream is not None:
            await self.stream.aclose()
