"""Whose turn it is: which requests are served next, together with which, and on how many cores.

A GPU has one lane: requests of one kind become a batch, as large as pays. A CPU has as many as it
has cores: requests of one kind are served side by side, on a part of the cores each. Cores that
share a decode wait for each other after every layer, and for whichever of them the system lends to
somebody else meanwhile; decodes with a core each wait for nobody.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from .batching import Batching
from .requests import DeviceRequest, RequestKey

MAX_BATCH_VALUES: Final = 1 << 18
"""Requests are joined up to so many latent values, sixteen SD pictures of 512 x 512 pixels.

A single request may have more.
"""


class Pulse:
    """Tells progress from standstill, so that leases follow the work."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def beat(self) -> None:
        """Note a step."""
        self._last = self._clock()

    def still_for(self) -> float:
        """Count the seconds since the last step."""
        return self._clock() - self._last


@dataclass(eq=False)
class Turn:
    """What one lane is at: requests that it serves as a batch.

    Attributes:
        batch: the requests.
        width: of how many lanes it is one: so many turns share the cores and the memory.
        steps: how many steps the batch takes.
        since: since when the lane is at something that may take so long, and how long; None while
            it is at nothing.
        pulse: its steps.
    """

    batch: list[DeviceRequest]
    width: int
    steps: int = 1
    since: tuple[float, float | None] | None = None
    pulse: Pulse = field(default_factory=Pulse)


class Turns:
    """Hands out turns, first come, first served; a kind of request shares the lanes with no other.

    Lane 0 begins with a kind once all lanes are at nothing. The others join as long as a request
    of that kind is first in the queue.
    """

    def __init__(self, lanes: int, batching: Batching) -> None:
        """Take the number of lanes, and what was learned of batches."""
        self._lanes = lanes
        self._batching = batching
        self._waiting: deque[DeviceRequest] = deque()
        self._key: RequestKey | None = None
        self._width = 1
        self._under_way: list[Turn] = []
        lock = threading.Lock()
        self._may_begin = threading.Condition(lock)
        self._may_join = threading.Condition(lock)

    def add(self, request: DeviceRequest, *, first: bool = False) -> None:
        """Have a request wait, behind the others or in front of them."""
        with self._may_begin:
            if first:
                self._waiting.appendleft(request)
            else:
                self._waiting.append(request)
            self._may_begin.notify()
            self._may_join.notify()

    def take(self, lane: int) -> Turn:
        """Wait for a lane's next turn."""
        changed = self._may_join if lane else self._may_begin
        with changed:
            changed.wait_for(lambda: self._is_open(lane))
            turn = Turn([], self._width) if self._under_way else self._begin()
            turn.batch.extend(self._batch(turn.width))
            self._under_way.append(turn)
        return turn

    def learn(self, turn: Turn, count: int, seconds: float) -> None:
        """Take note of the seconds that so many requests of a turn took as a batch."""
        with self._may_begin:
            self._batching.learn(_kind(turn.batch[0], turn.width), count, seconds)

    def end(self, turn: Turn) -> bool:
        """Note that a turn is over; tell whether all lanes are at nothing now."""
        with self._may_begin:
            self._under_way.remove(turn)
            if self._under_way:
                return False
            self._may_begin.notify()
        return True

    def under_way(self) -> list[Turn]:
        """List the turns under way."""
        with self._may_begin:
            return list(self._under_way)

    def _is_open(self, lane: int) -> bool:
        if not self._waiting:
            return False
        if not self._under_way:
            return lane == 0
        return len(self._under_way) < self._width and self._waiting[0].key == self._key

    def _begin(self) -> Turn:
        """Begin with the kind of the first request, in as many lanes as have something to do."""
        first = self._waiting[0]
        self._key = first.key
        # A video fills a CPU, and its decoder may not be used twice at once.
        lanes = 1 if first.vae.layout.fps else self._lanes
        alike = sum(request.key == self._key for request in self._waiting)
        self._width = min(lanes, alike)
        self._may_join.notify(self._width - 1)
        return Turn([], self._width)

    def _batch(self, width: int) -> list[DeviceRequest]:
        """Take the first request, and with it as many of its kind as pays and others leave."""
        first = self._waiting.popleft()
        batch, values = [first], first.tensor.numel()
        alike = [other for other in self._waiting if other.key == first.key]
        if not alike:
            return batch
        most = min(self._batching.most(_kind(first, width)), (1 + len(alike)) // width)
        for request in alike:
            if len(batch) < most and values + request.tensor.numel() <= MAX_BATCH_VALUES:
                self._waiting.remove(request)
                batch.append(request)
                values += request.tensor.numel()
        return batch


def _kind(request: DeviceRequest, width: int) -> tuple[RequestKey, int, int]:
    """Name requests for which one size of batches is the best: alike, and in so many lanes."""
    return request.key, len(request.tensor), width
