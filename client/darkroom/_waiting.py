"""Which of many jobs to wait for next: a queue without I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from darkroom._errors import WaitTimeoutError
from darkroom._flows import slice_seconds
from darkroom._requests import MAX_WAIT_SECONDS
from darkroom_wire.jobs import Job

WAITS_IN_FLIGHT = 16
SUBMITS_IN_FLIGHT = 8


class Handle(Protocol):
    """What the queue asks of a job's handle."""

    @property
    def info(self) -> Job:
        """The last document that was seen."""


H = TypeVar("H", bound=Handle)


class WaitQueue(Generic[H]):
    """Jobs that are not known to be finished, and when to look at which.

    At most `WAITS_IN_FLIGHT` are waited for at a time. Where there are more, each wait is shorter,
    so that every job is looked at about once in `MAX_WAIT_SECONDS`.
    """

    def __init__(
        self, handles: Iterable[H], clock: Callable[[], float], timeout: float | None
    ) -> None:
        self._clock = clock
        self._timeout = timeout
        self.deadline = None if timeout is None else clock() + timeout
        self._waiting: deque[H] = deque()
        self._finished: deque[H] = deque()
        self._in_flight = 0
        for handle in handles:
            (self._finished if handle.info.status.finished else self._waiting).append(handle)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._finished) + self._in_flight

    def finished(self) -> Iterator[H]:
        """Take out the jobs that are known to be finished."""
        while self._finished:
            yield self._finished.popleft()

    def turns(self) -> Iterator[tuple[H, int]]:
        """Take out the jobs to be waited for now, each with the seconds to wait."""
        while self._waiting and self._in_flight < WAITS_IN_FLIGHT:
            share = MAX_WAIT_SECONDS * WAITS_IN_FLIGHT // len(self)
            longest = max(1, min(MAX_WAIT_SECONDS, share))
            handle = self._waiting.popleft()
            self._in_flight += 1
            yield handle, slice_seconds(self.remaining(), longest)

    def looked(self, handle: H) -> None:
        """Put a job back after a turn: `handle.info` tells whether it is finished."""
        self._in_flight -= 1
        (self._finished if handle.info.status.finished else self._waiting).append(handle)

    def remaining(self) -> float | None:
        """Seconds until the timeout; None without one.

        Raises:
            WaitTimeoutError: it is over.
        """
        if self.deadline is None:
            return None
        remaining = self.deadline - self._clock()
        if remaining <= 0:
            raise WaitTimeoutError(f"{len(self)} jobs are not finished after {self._timeout:g} s")
        return remaining
