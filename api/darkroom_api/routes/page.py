"""`GET /`: the web page, which is a client of the service like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from darkroom_api.services import ServicesDependency
from darkroom_infra.settings import Settings

PAGE: Final = Path(__file__).parents[1] / "page"

# What the browser has is asked about each time: the page must fit the service after an upgrade.
HEADERS: Final = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}


class PageFiles(StaticFiles):
    """What the page consists of, below `/page`."""

    def __init__(self) -> None:
        super().__init__(directory=PAGE)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Answer with a file, or say that it has not changed."""
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response


router = APIRouter(include_in_schema=False)


@router.get("/")
async def page(services: ServicesDependency) -> Response:
    """Show the page. It asks for a key by itself where one is needed."""
    return FileResponse(
        PAGE / "index.html",
        headers={
            "Content-Security-Policy": content_security_policy(services.settings),
            "Referrer-Policy": "no-referrer",
            **HEADERS,
        },
    )


def content_security_policy(settings: Settings) -> str:
    """Allow what the page itself brings, and pictures from the store."""
    address = settings.s3_public_endpoint_url or settings.s3_endpoint_url
    store = "{0.scheme}://{0.netloc}".format(urlsplit(address)) if address else "https:"
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            f"img-src 'self' blob: {store}",
            f"media-src blob: {store}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
