"""Loses or doubles the doorbells: the Celery messages on their way from Redis to a worker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import redis

from darkroom_infra.queue import DECODE_QUEUE

NOTHING = b"*-1\r\n"
"""What Redis answers when a blocking pop has come to its time limit."""


class Thief:
    """Swallows the first messages for each job, as if a worker had died with them in hand."""

    def __init__(self, times: int = 1) -> None:
        self._times = times
        self._taken: dict[str, int] = {}

    @property
    def taken(self) -> int:
        """How many messages were swallowed."""
        return sum(self._taken.values())

    def __call__(self) -> Callable[[bytes], bytes]:
        """Watch one more connection."""
        return _rewriting(self._pass_on)

    def _pass_on(self, reply: bytes, _: str, message: dict[str, object]) -> bytes:
        job_id = str(message["headers"]["id"])  # type: ignore[index]
        taken = self._taken.get(job_id, 0)
        if taken == self._times:
            return reply
        self._taken[job_id] = taken + 1
        return NOTHING


class Echo:
    """Puts each message that a worker takes back once, so that it is delivered twice."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url)
        self._seen: set[str] = set()

    @property
    def doubled(self) -> int:
        """How many messages were doubled."""
        return len(self._seen)

    def __call__(self) -> Callable[[bytes], bytes]:
        """Watch one more connection."""
        return _rewriting(self._pass_on)

    def _pass_on(self, reply: bytes, queue: str, message: dict[str, object]) -> bytes:
        tag = str(message["properties"]["delivery_tag"])  # type: ignore[index]
        if tag not in self._seen:
            self._seen.add(tag)
            self._redis.lpush(queue, json.dumps(message))
        return reply


def _rewriting(
    pass_on: Callable[[bytes, str, dict[str, object]], bytes],
) -> Callable[[bytes], bytes]:
    """Collect a connection's bytes until replies are whole, and hand on those with a message."""
    waiting = b""

    def rewrite(piece: bytes) -> bytes:
        nonlocal waiting
        waiting += piece
        ready = b""
        while (end := reply_end(waiting)) is not None:
            reply, waiting = waiting[:end], waiting[end:]
            found = _message(reply)
            ready += pass_on(reply, *found) if found else reply
        return ready

    return rewrite


def _message(reply: bytes) -> tuple[str, dict[str, object]] | None:
    """Read queue and message from the answer to a blocking pop; None from any other."""
    if not reply.startswith(b"*2\r\n$") or DECODE_QUEUE.encode() not in reply[:80]:
        return None
    _, _, queue, _, body, _ = reply.split(b"\r\n", 5)
    return queue.decode(), json.loads(body)


def reply_end(data: bytes, start: int = 0) -> int | None:
    """Find where the reply of Redis ends that begins at `start`; None if it is not all there."""
    line_end = data.find(b"\r\n", start)
    if line_end < 0:
        return None
    kind, rest, end = data[start : start + 1], data[start + 1 : line_end], line_end + 2
    if kind in b"$=!":
        length = int(rest)
        end = end if length < 0 else end + length + 2
        return end if end <= len(data) else None
    for _ in _parts(kind, rest):
        following = reply_end(data, end)
        if following is None:
            return None
        end = following
    return end


def _parts(kind: bytes, count: bytes) -> Iterator[int]:
    """Count the replies inside of a composed one."""
    if kind in b"*~>":
        yield from range(int(count))
    elif kind in b"%|":
        yield from range(2 * int(count) + (kind == b"|"))
