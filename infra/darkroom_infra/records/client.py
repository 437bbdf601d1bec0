"""Carries calls out on Redis, from threads or from an event loop.

RecordsError
├── RecordsUnavailableError   Redis is away or not ready: try again later
│   └── RecordsFullError      it has no memory left for new jobs
└── (anything else is a defect, and comes as redis-py raises it)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from importlib import resources
from itertools import islice
from typing import Any, Final, TypeVar

import redis
import redis.asyncio
from redis.exceptions import (
    BusyLoadingError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from .transitions import Call

T = TypeVar("T")

PREFIX: Final = "darkroom:"
CHANNEL: Final = "changes"

SOCKET_TIMEOUT: Final = 5.0
CONNECT_TIMEOUT: Final = 2.0
MAX_CONNECTIONS: Final = 32
POOL_TIMEOUT: Final = 20
AOF_TIMEOUT_MS: Final = 3000
PIPELINED: Final = 200

_REFUSED_WHEN_FULL: Final = frozenset({"admit", "accept", "register_batch"})

_UNAVAILABLE = (
    RedisConnectionError,
    RedisTimeoutError,
    BusyLoadingError,
    ReadOnlyError,
)


class RecordsError(Exception):
    """The job records cannot be read or written."""


class RecordsUnavailableError(RecordsError):
    """Redis is away or not ready. Nothing is known of the call that failed."""


class RecordsFullError(RecordsUnavailableError):
    """Redis is at its `maxmemory`: what was to be written is not there."""


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OutOfMemoryError as error:
        raise RecordsFullError(str(error)) from error
    except _UNAVAILABLE as error:
        raise RecordsUnavailableError(str(error)) from error


def _scripts() -> dict[str, str]:
    """Read the Lua scripts by name, each behind the common prelude.

    Where Redis's memory is full, new jobs are refused, but those on record can still end.
    """
    folder = resources.files(__package__) / "lua"
    prelude = (folder / "prelude.lua").read_text()
    scripts = {}
    for entry in folder.iterdir():
        name, _, kind = entry.name.partition(".")
        if kind == "lua" and name != "prelude":
            flags = "" if name in _REFUSED_WHEN_FULL else " flags=allow-oom"
            scripts[name] = f"#!lua{flags}\n{prelude}{entry.read_text()}"
    return scripts


class RecordsClient:
    """Runs calls from threads; safe to share between them."""

    def __init__(self, url: str, prefix: str = PREFIX) -> None:
        self._prefix = prefix
        self._redis = redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
            health_check_interval=5,
        )
        self._scripts = {
            name: self._redis.register_script(text) for name, text in _scripts().items()
        }

    def run(self, call: Call[T]) -> T:
        """Carry one call out.

        Raises:
            RecordsUnavailableError: Redis cannot answer now.
        """
        with _translated():
            answer = self._scripts[call.script](keys=[self._prefix], args=list(call.arguments))
        return call.read(answer)

    def run_all(self, calls: Iterable[Call[T]]) -> list[T]:
        """Carry many calls of one script out, a few hundred at a time.

        Raises:
            RecordsUnavailableError: Redis cannot answer now; some may have been carried out.
        """
        results: list[T] = []
        rest = iter(calls)
        while some := list(islice(rest, PIPELINED)):
            with _translated(), self._redis.pipeline(transaction=False) as pipeline:
                for call in some:
                    self._scripts[call.script](
                        keys=[self._prefix], args=list(call.arguments), client=pipeline
                    )
                answers = pipeline.execute()
            results += [call.read(answer) for call, answer in zip(some, answers, strict=True)]
        return results

    def sync(self) -> None:
        """Return once all that was written is on Redis's disk, where Redis keeps an AOF.

        Raises:
            RecordsUnavailableError: Redis cannot answer now, or its disk does not keep up.
        """
        with _translated():
            with self._redis.pipeline(transaction=False) as pipeline:
                # WAITAOF waits for the writes of its own connection: here one after all others.
                pipeline.set(self._prefix + "synced", 1)
                pipeline.execute_command("WAITAOF", 1, 0, AOF_TIMEOUT_MS)  # type: ignore[no-untyped-call]
                written, synced = pipeline.execute(raise_on_error=False)
            if isinstance(written, Exception):
                raise written
        if isinstance(synced, ResponseError):
            return  # no AOF, or a server without WAITAOF: the ledger alone makes jobs durable
        if isinstance(synced, Exception) or synced[0] < 1:
            raise RecordsUnavailableError(f"not on Redis's disk after {AOF_TIMEOUT_MS} ms")

    def epoch(self) -> str | None:
        """Name the epoch: absent while records and ledger may disagree."""
        with _translated():
            value = self._redis.get(self._prefix + "epoch")
        return str(value) if value else None

    def begin_epoch(self, name: str) -> None:
        """Declare that records and ledger agree."""
        with _translated():
            self._redis.set(self._prefix + "epoch", name)

    def swept(self) -> str | None:
        """Name the server process since whose start records and ledger were compared, if lately."""
        with _translated():
            value = self._redis.get(self._prefix + "swept")
        return str(value) if value else None

    def note_swept(self, server: str, seconds: float) -> None:
        """Note that they were compared; the note ends by itself."""
        with _translated():
            self._redis.set(self._prefix + "swept", server, px=round(seconds * 1000))

    def try_lock(self, name: str, holder: str, seconds: float) -> bool:
        """Take or renew a lock that ends by itself; False if another holds it."""
        with _translated():
            key = f"{self._prefix}lock:{name}"
            taken = self._redis.set(key, holder, nx=True, px=round(seconds * 1000))
            if not taken and self._redis.get(key) == holder:
                self._redis.pexpire(key, round(seconds * 1000))
                return True
        return bool(taken)

    def server(self) -> dict[str, Any]:
        """Ask the server about itself (`INFO server`)."""
        with _translated():
            info: dict[str, Any] = self._redis.info("server")
        return info

    def keeping(self) -> tuple[str, bool]:
        """Ask what the server drops when its memory is full, and whether it has a log on disk."""
        with _translated():
            policy = str(self._redis.info("memory")["maxmemory_policy"])
            return policy, bool(self._redis.info("persistence")["aof_enabled"])

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


class AsyncRecordsClient:
    """Runs calls from an event loop."""

    def __init__(self, url: str, prefix: str = PREFIX) -> None:
        self._prefix = prefix
        self._aof = True
        # Hundreds of waiting clients may be woken at once: they share a few connections.
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=POOL_TIMEOUT,
            decode_responses=True,
            socket_timeout=SOCKET_TIMEOUT,
            socket_connect_timeout=CONNECT_TIMEOUT,
            health_check_interval=5,
        )
        self._redis = redis.asyncio.Redis.from_pool(pool)
        # Listening may be silent for long: no read timeout, a health check instead.
        self._listener = redis.asyncio.Redis.from_url(
            url,
            decode_responses=True,
            socket_connect_timeout=CONNECT_TIMEOUT,
            socket_keepalive=True,
        )
        self._scripts = {
            name: self._redis.register_script(text) for name, text in _scripts().items()
        }

    async def run(self, call: Call[T]) -> T:
        """Carry one call out.

        Raises:
            RecordsUnavailableError: Redis cannot answer now.
        """
        with _translated():
            answer = await self._scripts[call.script](
                keys=[self._prefix], args=list(call.arguments)
            )
        return call.read(answer)

    async def run_durably(self, call: Call[T]) -> T:
        """Carry one call out and return once it is on Redis's disk, where Redis keeps an AOF.

        Raises:
            RecordsUnavailableError: Redis cannot answer now, or its disk does not keep up.
        """
        if not self._aof:
            return await self.run(call)
        with _translated():
            async with self._redis.pipeline(transaction=False) as pipeline:
                await self._scripts[call.script](
                    keys=[self._prefix], args=list(call.arguments), client=pipeline
                )
                pipeline.execute_command("WAITAOF", 1, 0, AOF_TIMEOUT_MS)
                answer, synced = await pipeline.execute(raise_on_error=False)
            if isinstance(answer, Exception):
                raise answer
        if isinstance(synced, ResponseError):
            # No AOF, or a server without WAITAOF: the ledger alone makes the job durable.
            self._aof = False
        elif isinstance(synced, Exception) or synced[0] < 1:
            raise RecordsUnavailableError(f"not on Redis's disk after {AOF_TIMEOUT_MS} ms")
        return call.read(answer)

    async def changes(self) -> AsyncIterator[str | None]:
        """Yield the id of each job that changes; None once the subscription stands.

        Raises:
            RecordsUnavailableError: the connection is lost; changes may have been missed.
        """
        with _translated():
            async with self._listener.pubsub() as subscription:
                await subscription.subscribe(self._prefix + CHANNEL)
                async for message in subscription.listen():
                    if message["type"] == "subscribe":
                        yield None
                    elif message["type"] == "message":
                        yield message["data"].partition(" ")[0]

    async def epoch(self) -> str | None:
        """Name the epoch: absent while records and ledger may disagree."""
        with _translated():
            value = await self._redis.get(self._prefix + "epoch")
        return str(value) if value else None

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()
        await self._listener.aclose()
