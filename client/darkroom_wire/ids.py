"""Job ids: UUID version 7 (RFC 9562), so that ids sort by the time they were made."""

import os
import time
import uuid
from datetime import UTC, datetime

_TIMESTAMP_SHIFT = 80
_RANDOM_MASK = (1 << 74) - 1


def new_id(unix_ms: int | None = None, random: bytes | None = None) -> str:
    """Make an id, 36 characters, from milliseconds since 1970 and ten random bytes."""
    milliseconds = time.time_ns() // 1_000_000 if unix_ms is None else unix_ms
    entropy = int.from_bytes(os.urandom(10) if random is None else random, "big") & _RANDOM_MASK
    high, low = entropy >> 62, entropy & ((1 << 62) - 1)
    value = milliseconds << _TIMESTAMP_SHIFT | 7 << 76 | high << 64 | 0b10 << 62 | low
    return str(uuid.UUID(int=value))


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
