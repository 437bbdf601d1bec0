"""Medians and percentiles of what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """What repeated measurements of one thing gave, in their own unit."""

    count: int
    p50: float
    p99: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        ordered = sorted(values)
        return cls(
            len(ordered),
            percentile(ordered, 0.5),
            percentile(ordered, 0.99),
            ordered[0],
            ordered[-1],
        )

    def json(self, digits: int = 3) -> dict[str, Any]:
        """Give the figures as they are written."""
        return {key: round(value, digits) for key, value in asdict(self).items()}


def percentile(ordered: Sequence[float], part: float) -> float:
    """Find the value below which a part of ordered values lies."""
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
