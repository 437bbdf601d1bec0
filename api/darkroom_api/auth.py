"""Who is calling: an API key as a bearer token, or as the password of HTTP Basic."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from typing import Annotated

from fastapi import Depends, Request

from darkroom_infra.settings import KEY_HASH_PREFIX, hash_key

from .errors import UnauthorizedError
from .services import Services, ServicesDependency

KEY_PARAMETER = "api_key"
"""Where an address has the key, for the routes that take it so."""

LOCAL_OWNER = "local"
"""Who owns the jobs where no keys are set."""


def _presented_key(header: str) -> str | None:
    scheme, _, value = header.partition(" ")
    match scheme.lower():
        case "bearer":
            return value.strip() or None
        case "basic":
            try:
                credentials = base64.b64decode(value, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                return None
            return credentials.partition(":")[2] or None
        case _:
            return None


def _owner_of(services: Services, presented: Iterable[str | None]) -> str:
    """Name the owner of the first key that is known.

    Raises:
        UnauthorizedError: keys are set, and none of them was presented.
    """
    keys = services.settings.api_keys
    if not keys:
        return LOCAL_OWNER
    for key in presented:
        # The keys are compared by their SHA-256, so that timing tells nothing about them.
        owner = keys.get(hash_key(key)) if key and not key.startswith(KEY_HASH_PREFIX) else None
        if owner is not None:
            return owner
    raise UnauthorizedError(
        "an API key is needed: Authorization: Bearer KEY, or HTTP Basic with it as password"
    )


# Coroutines, although nothing is awaited: FastAPI would send functions to a thread.
async def _owner(request: Request, services: ServicesDependency) -> str:
    return _owner_of(services, [_presented_key(request.headers.get("authorization", ""))])


async def _owner_by_address(request: Request, services: ServicesDependency) -> str:
    header = _presented_key(request.headers.get("authorization", ""))
    return _owner_of(services, [header, *request.query_params.getlist(KEY_PARAMETER)])


Owner = Annotated[str, Depends(_owner)]

AddressOwner = Annotated[str, Depends(_owner_by_address)]
"""As `Owner`, for clients that know only an address: `api_key=KEY` in the query counts too."""
