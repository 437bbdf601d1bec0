"""The headers of a submission, `Prefer` and `Idempotency-Key`, and those of answers."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from darkroom_wire.problems import FieldError

from .errors import MalformedRequestError

MAX_WAIT_SECONDS = 60
MAX_KEY_LENGTH = 255

NOTED = "darkroom.headers"
"""Where a request's scope has what is noted for its answer."""

_SANE_ID = re.compile(r"[\x21-\x7e]{1,128}")
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


def note_headers(request: Request, headers: Mapping[str, str]) -> None:
    """Have the answer to a request carry these headers, whatever it will be."""
    request.scope.setdefault(NOTED, {}).update(headers)


class CommonHeaders:
    """Gives every answer its `X-Request-Id`, and what was noted for it.

    The id is the caller's, where it is sane, else a new one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and add to what is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else str(uuid.uuid4())

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers.update(scope.get(NOTED, {}))
            await send(message)

        await self._app(scope, receive, send_with_headers)


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
