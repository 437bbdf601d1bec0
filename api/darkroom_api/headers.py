"""The headers of a submission: `Prefer` and `Idempotency-Key`, and those of its answer."""

from __future__ import annotations

import re

from darkroom_wire.problems import FieldError

from .errors import MalformedRequestError

MAX_WAIT_SECONDS = 60
MAX_KEY_LENGTH = 255

_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,6})\"?")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def preferred_wait(prefer: str) -> int | None:
    """Read `wait=N` from a `Prefer` header (RFC 7240), at most 60 seconds.

    Preferences that are not understood are passed over, as the RFC demands; the first one counts.
    """
    for preference in prefer.split(","):
        match = _WAIT.fullmatch(preference.partition(";")[0].strip().lower())
        if match:
            return min(int(match[1]), MAX_WAIT_SECONDS)
    return None


def submitted(location: str, wait: int | None, *, finished: bool) -> tuple[int, dict[str, str]]:
    """Give the status and the headers that answer a submission.

    Args:
        location: Where to look at what was made of it.
        wait: The seconds of `Prefer: wait=N`, None without it.
        finished: Whether all of it has ended.
    """
    headers = {"Location": location}
    if wait is not None:
        headers["Preference-Applied"] = f"wait={wait}"
    if not finished:
        headers["Retry-After"] = "1"
    return 200 if finished and wait is not None else 202, headers


def idempotency_key(header: str | None) -> str:
    """Read an `Idempotency-Key`: a quoted string, or a bare one; '' where there is none.

    Raises:
        MalformedRequestError: empty, longer than 255 characters, or with blanks or control
            characters in it.
    """
    if header is None:
        return ""
    text = header.strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if not _KEY.fullmatch(text):
        raise MalformedRequestError.of(
            FieldError(
                field="Idempotency-Key",
                message=f"1 to {MAX_KEY_LENGTH} visible ASCII characters expected, "
                f"not {header[:60]!r}",
            )
        )
    return text
