"""`GET /`: the web page, which is a client of the service like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from darkroom_api.services import ServicesDependency
from darkroom_infra.settings import Settings

PAGE: Final = Path(__file__).parents[1] / "page"

router = APIRouter(include_in_schema=False)
router.mount("/page", StaticFiles(directory=PAGE))


@router.get("/")
async def page(services: ServicesDependency) -> Response:
    """Show the page. It asks for a key by itself where one is needed."""
    return FileResponse(
        PAGE / "index.html",
        headers={
            "Content-Security-Policy": content_security_policy(services.settings),
            "Cache-Control": "no-cache",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
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
