"""Who is calling: an API key as a bearer token, or as the password of HTTP Basic."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated

from fastapi import Depends, Request

from darkroom_infra.settings import hash_key

from .errors import UnauthorizedError
from .services import Services, ServicesDependency

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


def owner_of(request: Request, services: Services) -> str:
    """Name the key's owner.

    Raises:
        UnauthorizedError: keys are set, and none of them was presented.
    """
    keys = services.settings.api_keys
    if not keys:
        return LOCAL_OWNER
    key = _presented_key(request.headers.get("authorization", ""))
    # The keys are compared by their SHA-256, so that timing tells nothing about them.
    owner = keys.get(hash_key(key)) if key and not key.startswith("sha256:") else None
    if owner is None:
        raise UnauthorizedError(
            "an API key is needed: Authorization: Bearer KEY, or HTTP Basic with it as password"
        )
    return owner


def _owner(request: Request, services: ServicesDependency) -> str:
    return owner_of(request, services)


Owner = Annotated[str, Depends(_owner)]
