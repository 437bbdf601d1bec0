"""When the next attempt at a webhook is due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .outcomes import Outcome

_MINUTE = 60.0
_HOUR = 3600.0

STANDARD_DELAYS = (
    *(0.0, 5.0, 5 * _MINUTE, 30 * _MINUTE),
    *(2 * _HOUR, 5 * _HOUR, 10 * _HOUR, 14 * _HOUR, 20 * _HOUR, 24 * _HOUR),
)
"""The example of Standard Webhooks: ten attempts, each so long after the one before; the last
75 hours, 35 minutes and 5 seconds after the first."""

JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long to wait before each attempt, counted from the end of the one before."""

    delays: Sequence[float] = STANDARD_DELAYS
    jitter: float = JITTER
    """By which part a delay is made longer or shorter, so that failures do not come in step."""

    def next_delay(self, attempt: int, outcome: Outcome, chance: float) -> float | None:
        """Tell how many seconds after attempt number `attempt` the next is due.

        Args:
            attempt: how many attempts have been made, this one included; the first is 1.
            outcome: what came of it.
            chance: a random number from 0 to 1.

        Returns:
            The delay, never shorter than what the receiver asked for; `None` if there will be no
            other attempt: delivered, refused for good (410, a forbidden address), or the last.
        """
        if outcome.delivered or outcome.gone or outcome.permanent or attempt >= len(self.delays):
            return None
        delay = self.delays[attempt] * (1 - self.jitter + 2 * self.jitter * chance)
        asked = (outcome.retry_after or 0.0) * (1 + self.jitter * chance)
        return max(delay, asked)
