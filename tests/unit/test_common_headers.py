"""What every answer carries, that to a defect too."""

from __future__ import annotations

import asyncio

import httpx
from fastapi import FastAPI

from darkroom_api import errors
from darkroom_api.common_headers import CommonHeaders


def broken() -> FastAPI:
    """Make a service with a defect, for none is known that could be provoked in the real one."""
    app = FastAPI()
    errors.install(app)
    app.add_middleware(CommonHeaders)

    @app.get("/")
    async def fail() -> None:
        raise LookupError("of ours")

    return app


def test_a_defect_has_a_request_id() -> None:
    """An answer of 500 is a problem document with the caller's request id, and tells no secrets."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(broken(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.get("/", headers={"X-Request-Id": "mine"})

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.headers["X-Request-Id"]) == (500, "mine")
    assert answer.headers["content-type"] == "application/problem+json"
    assert "of ours" not in answer.text
