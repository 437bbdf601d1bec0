"""Job ids: UUID version 7 (RFC 9562), so that ids sort by the time they were made."""

import os
import time
import uuid
from datetime import UTC, datetime

_TIMESTAMP_SHIFT = 80
_NS_PER_MS = 1_000_000
_RANDOM_MASK = (1 << 62) - 1
_MEMBER_BITS = 14
_MEMBER_MASK = (1 << _MEMBER_BITS) - 1

MAX_MEMBERS = _MEMBER_MASK
"""So many jobs a batch may have at most, for their ids to be told apart."""


def new_id(unix_ns: int | None = None, random: bytes | None = None) -> str:
    """Make an id, 36 characters, from nanoseconds since 1970 and eight random bytes.

    The 12 bits behind the milliseconds hold their fraction (RFC 9562, section 6.2, method 3), so
    that ids made one after the other sort to about a quarter of a microsecond.
    """
    milliseconds, rest = divmod(time.time_ns() if unix_ns is None else unix_ns, _NS_PER_MS)
    fraction = (rest << 12) // _NS_PER_MS
    chance = int.from_bytes(os.urandom(8) if random is None else random, "big") & _RANDOM_MASK
    value = milliseconds << _TIMESTAMP_SHIFT | 7 << 76 | fraction << 64 | 0b10 << 62 | chance
    return str(uuid.UUID(int=value))


def new_batch_id() -> str:
    """Make an id for a batch: one that leaves room behind it for the ids of its jobs."""
    return str(uuid.UUID(int=uuid.UUID(new_id()).int & ~_MEMBER_MASK))


def member_id(batch_id: str, index: int) -> str:
    """Give the id of a batch's job. They follow the batch's own, in order and without a gap."""
    if not 0 <= index < MAX_MEMBERS:
        raise ValueError(f"a batch has at most {MAX_MEMBERS} jobs, not one at {index}")
    return str(uuid.UUID(int=uuid.UUID(batch_id).int & ~_MEMBER_MASK | index + 1))


def first_id(moment: datetime) -> str:
    """Give an id before all that are made from that moment on."""
    return new_id(round(moment.timestamp() * 1000) * _NS_PER_MS, bytes(8))


def is_id(text: str) -> bool:
    """Tell whether a text is an id in the one form that `new_id` gives."""
    try:
        parsed = uuid.UUID(text)
    except ValueError:
        return False
    return parsed.version == 7 and str(parsed) == text


def id_time(job_id: str) -> datetime:
    """Read the moment at which an id was made."""
    milliseconds = uuid.UUID(job_id).int >> _TIMESTAMP_SHIFT
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)
