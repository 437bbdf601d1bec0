"""Headers that an answer carries whatever it is: the request's id, and what is noted on the way."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_NOTED = "darkroom.headers"
"""Where a request's scope has them."""

_SANE_ID = re.compile(r"[\x21-\x7e]{1,128}")


def note_headers(request: Request, headers: Mapping[str, str]) -> None:
    """Have the answer to a request carry these headers."""
    request.scope[_NOTED].update(headers)


def noted_headers(request: Request) -> Mapping[str, str]:
    """Give the headers, to an answer that does not pass by `CommonHeaders`."""
    noted: Mapping[str, str] = request.scope.get(_NOTED, {})
    return noted


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
        scope[_NOTED] = {"X-Request-Id": request_id}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(scope[_NOTED])
            await send(message)

        await self._app(scope, receive, send_with_headers)
