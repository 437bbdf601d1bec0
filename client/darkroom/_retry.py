"""Whether to send a request again, and after how long: a decision without side effects."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from darkroom._errors import (
    DarkroomError,
    OverloadedError,
    RequestRefusedError,
    ServiceFaultError,
    ServiceUnreachableError,
)

_PASSING_FAULTS = frozenset({502, 504})


@dataclass(frozen=True)
class RetryPolicy:
    """How often a request is sent, and for how long.

    A service that says when to come back is believed until `total_seconds` are over. Without its
    word there are `attempts` in all, with pauses that double and are shortened at random, so that
    many clients do not come back at once.
    """

    attempts: int = 6
    total_seconds: float = 120.0
    first_pause: float = 0.25
    longest_pause: float = 10.0

    def pause(
        self, error: DarkroomError, *, attempt: int, elapsed: float, chance: float
    ) -> float | None:
        """Decide what follows a failed attempt.

        Args:
            error: How it failed.
            attempt: Which attempt that was, from 1.
            elapsed: Seconds since the first one began.
            chance: A random number from 0 to 1.

        Returns:
            Seconds to wait before the next attempt; None to give up.
        """
        if not _is_passing(error):
            return None
        advice = error.retry_after if isinstance(error, RequestRefusedError) else None
        if advice is None:
            if attempt >= self.attempts:
                return None
            backoff = min(self.first_pause * 2 ** (attempt - 1), self.longest_pause)
            pause = backoff * (0.5 + 0.5 * chance)
        else:
            # Never earlier than asked for; a little later, each client at its own moment.
            pause = advice + self.first_pause * chance
        return pause if elapsed + pause <= self.total_seconds else None


def read_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Read a `Retry-After` header, seconds or a date, as seconds from now; None if unreadable."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())


def _is_passing(error: DarkroomError) -> bool:
    if isinstance(error, ServiceUnreachableError | OverloadedError):
        return True
    return isinstance(error, ServiceFaultError) and error.status in _PASSING_FAULTS
