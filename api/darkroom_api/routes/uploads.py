"""`/v1/uploads`: links with which callers write files straight to the store."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from darkroom_api import uploads
from darkroom_api.pacing import Submitter
from darkroom_api.queries import refuse_body, refuse_repeated, refuse_unknown
from darkroom_api.services import ServicesDependency
from darkroom_wire.jobs import Upload

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])


@router.post("", status_code=201, response_model=Upload)
async def announce(
    request: Request,
    owner: Submitter,
    services: ServicesDependency,
    size: Annotated[
        int | None,
        Query(alias="bytes", ge=1, description="the file's size: the link takes no other"),
    ] = None,
) -> Upload:
    """Announce a file: PUT it to `url` within the hour, then `POST /v1/jobs?upload=ID`."""
    refuse_unknown(request, {"bytes"})
    refuse_repeated(request)
    await refuse_body(request)
    return await uploads.announce(services, owner, size)
