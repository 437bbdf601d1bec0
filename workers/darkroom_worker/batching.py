"""How many requests to serve together: learned, for it depends on the device and the pictures.

A GPU decodes several small pictures in hardly more time than one, and a large one fills it. A CPU
gains little, and who is first in a batch waits for the last.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

GAIN: Final = 0.95
"""Twice as many together are better where each takes at most this part of its time."""

PATIENCE: Final = 64
"""After so many batches of the size that was found best, another is tried again."""

WEIGHT: Final = 0.3
"""How much the latest batch counts among those of its size: machines are shared."""

KINDS: Final = 256
"""Of so many kinds of requests it is remembered what is best, the latest used."""


@dataclass
class _Kind:
    """What is known of one kind: seconds for each, by how many there were together."""

    best: int
    seconds: dict[int, float] = field(default_factory=dict)
    trial: int | None = None
    since: int = PATIENCE
    larger_next: bool = True
    warm: bool = False


class Batching:
    """Doubles batches as long as that pays, and looks again from time to time.

    Not for several threads at once. The first batch of a kind is not counted: memory is fetched and
    kernels are chosen meanwhile.
    """

    def __init__(self, first: int = 1) -> None:
        """Begin with batches of so many."""
        self._first = first
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()

    def most(self, kind: Hashable) -> int:
        """Tell how many of a kind to serve together next."""
        known = self._kind(kind)
        return known.trial or known.best

    def learn(self, kind: Hashable, count: int, seconds: float) -> None:
        """Take note of the seconds that so many took together."""
        known = self._kind(kind)
        if not known.warm:
            known.warm = True
            return
        if count not in (known.best, known.trial):
            return  # fewer were waiting
        each = seconds / count
        before = known.seconds.get(count, each)
        known.seconds[count] = before + WEIGHT * (each - before)
        if count == known.trial:
            self._judge(known, count)
        elif known.trial is None:
            known.since += 1
            if known.since >= PATIENCE:
                self._try_another(known)

    def _judge(self, known: _Kind, count: int) -> None:
        """Take a size over that was tried, or go back; then the next trial is some time off."""
        known.trial, known.since = None, 0
        smaller, larger = sorted((count, known.best))
        better = larger if known.seconds[larger] <= GAIN * known.seconds[smaller] else smaller
        if better == count:
            # It may pay to go on.
            known.larger_next, known.since = count > known.best, PATIENCE
            known.best = count
        else:
            # What was found on a bad moment is measured anew the next time.
            del known.seconds[count]

    def _try_another(self, known: _Kind) -> None:
        """Try twice as many, and the next time half as many."""
        larger, known.larger_next = known.larger_next, not known.larger_next
        known.since = 0
        if larger:
            known.trial = 2 * known.best
        elif known.best > 1:
            known.trial = known.best // 2
        if known.trial is not None:
            known.seconds.pop(known.trial, None)

    def _kind(self, kind: Hashable) -> _Kind:
        if kind not in self._kinds:
            self._kinds[kind] = _Kind(self._first)
            if len(self._kinds) > KINDS:
                self._kinds.popitem(last=False)
        self._kinds.move_to_end(kind)
        return self._kinds[kind]
