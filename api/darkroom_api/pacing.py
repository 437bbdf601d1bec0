"""How often a key may submit, where `DARKROOM_RATE_LIMIT` says so, and the headers that tell it.

`RateLimit-Policy` and `RateLimit` are those of draft-ietf-httpapi-ratelimit-headers-10: `q`
submissions in `w` seconds, `r` are left, and all are back in `t` seconds.
"""

from __future__ import annotations

import math
from typing import Annotated

from fastapi import Depends, Request

from darkroom_infra.records import transitions

from .auth import AddressOwner, Owner
from .common_headers import note_headers
from .errors import RateLimitedError
from .services import Services, ServicesDependency

POLICY = '"submissions"'


async def _take_turn(request: Request, owner: str, services: Services) -> str:
    """Count a submission, before anything of it is looked at.

    Raises:
        RateLimitedError: the owner has none left for now.
        RecordsUnavailableError: Redis cannot answer now.
    """
    limit = services.settings.rate_limit
    if limit is None:
        return owner
    turn = await services.records.run(transitions.pace(owner, limit.requests, limit.window))
    seconds = limit.window.total_seconds()
    note_headers(
        request,
        {
            "RateLimit-Policy": f"{POLICY};q={limit.requests};w={math.ceil(seconds)}",
            "RateLimit": f"{POLICY};r={turn.left};t={math.ceil(turn.whole_in.total_seconds())}",
        },
    )
    if not turn.taken:
        raise RateLimitedError(
            f"this key may submit {limit.requests} times in {seconds:g} s, and has done so",
            math.ceil(turn.next_in.total_seconds()),
        )
    return owner


async def _submitter(request: Request, owner: Owner, services: ServicesDependency) -> str:
    return await _take_turn(request, owner, services)


async def _submitter_by_address(
    request: Request, owner: AddressOwner, services: ServicesDependency
) -> str:
    return await _take_turn(request, owner, services)


Submitter = Annotated[str, Depends(_submitter)]
"""As `Owner`, for the routes that make jobs: the owner may do so now."""

AddressSubmitter = Annotated[str, Depends(_submitter_by_address)]
"""As `AddressOwner`, likewise."""
