"""Where the object store is, how it is entered, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from darkroom_infra.settings import Settings

CONNECT_TIMEOUT: Final = 3
READ_TIMEOUT: Final = 20
TRIES: Final = 3
"""Seconds, and how often a call is made before it has failed."""


@dataclass(frozen=True)
class StoreConfig:
    """Where the store is and how it is entered; without keys, boto3's own credential chain."""

    bucket: str
    region: str
    endpoint_url: str | None = None
    public_endpoint_url: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> StoreConfig:
        """Pick the store's settings."""
        secret = settings.s3_secret_access_key
        return cls(
            bucket=settings.s3_bucket,
            region=settings.s3_region,
            endpoint_url=settings.s3_endpoint_url,
            public_endpoint_url=settings.s3_public_endpoint_url,
            access_key_id=settings.s3_access_key_id,
            secret_access_key=secret.get_secret_value() if secret else None,
        )
