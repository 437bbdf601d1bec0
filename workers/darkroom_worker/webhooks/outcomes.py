"""What came of one attempt to send a webhook, in words that can be shown to its owner."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus

EXCERPT_BYTES = 512
MAX_RETRY_AFTER = 86_400.0
_MAX_DATE = 64
_ASKS_TO_WAIT = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_SECONDS = re.compile(r"[0-9]+", re.ASCII)

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attempt. Exactly one of `delivered` and `error` is set."""

    delivered: bool
    """The receiver answered with a status from 200 to 299."""
    status: int | None
    """The receiver's status, `None` where it gave no answer."""
    latency_ms: float
    """From the beginning of the attempt to the answer's headers, or to the fault."""
    excerpt: str = ""
    """How the answer's body begins, without control characters."""
    error: str | None = None
    """Why it is not delivered."""
    retry_after: float | None = None
    """How many seconds the receiver asks to wait (429 and 503), at most a day."""
    gone: bool = False
    """The receiver wants no more of these (410)."""
    permanent: bool = False
    """The URL or its address is forbidden: trying again is no use."""


def answered(status: int, headers: Headers, body: bytes, latency_ms: float, at: float) -> Outcome:
    """Judge an answer; `at` is when it came, in Unix seconds."""
    return Outcome(
        delivered=200 <= status < 300,
        status=status,
        latency_ms=latency_ms,
        excerpt=printable(body[:EXCERPT_BYTES]),
        error=_complaint(status),
        retry_after=_retry_after(headers, at) if status in _ASKS_TO_WAIT else None,
        gone=status == HTTPStatus.GONE,
    )


def printable(text: bytes | str) -> str:
    """Make harmless what a stranger wrote: no control characters but line ends and tabs."""
    decoded = text if isinstance(text, str) else text.decode("utf-8", errors="replace")
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for character in decoded.replace("\r\n", "\n")
    )


def _complaint(status: int) -> str | None:
    """Say what is wrong with a status, if anything is."""
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"the receiver answered {status}; redirects are not followed"
    if status == HTTPStatus.GONE:
        return "the receiver answered 410: it wants no more of these"
    return f"the receiver answered {status}"


def _retry_after(headers: Headers, at: float) -> float | None:
    """Read `Retry-After`, seconds or a date, as seconds from `at`; what makes no sense is nothing.

    Seconds beyond the limit count as the limit.
    """
    values = (value for name, value in headers if name.lower() == b"retry-after")
    text = next(values, b"").decode("latin-1").strip()
    if _SECONDS.fullmatch(text):
        seconds = float(text[:20])  # as good as endless with 20 digits
    else:
        try:
            moment = parsedate_to_datetime(text[:_MAX_DATE])
            seconds = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() - at
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)
