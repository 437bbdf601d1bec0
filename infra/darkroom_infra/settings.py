"""Settings: environment variables with the prefix `DARKROOM_`, and a `.env` file."""

from __future__ import annotations

import base64
import binascii
import hashlib
import ipaddress
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import BeforeValidator, ByteSize, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from . import failpoints

PREFIX = "DARKROOM_"
ENV_FILE = ".env"

MAX_DELAY = 7 * 86_400.0

MIN_WINDOW, MAX_WINDOW = timedelta(seconds=1), timedelta(days=1)

KEY_HASH_PREFIX = "sha256:"
KEY_HASH = re.compile(r"sha256:[0-9a-f]{64}")


class SettingsError(ValueError):
    """A setting that is unknown or invalid. The text names the variable and the reason."""


def hash_key(key: str) -> str:
    """Give the form in which an API key is compared and may be configured: `sha256:HEX`."""
    if key.startswith(KEY_HASH_PREFIX):
        return key
    return KEY_HASH_PREFIX + hashlib.sha256(key.encode()).hexdigest()


def _parse_keys(value: object) -> object:
    """Turn `name:key,…` into a mapping from hashed key to name."""
    if not isinstance(value, str):
        return value
    keys: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in value.split(","))):
        name, separator, key = entry.partition(":")
        if not (separator and name and key):
            raise ValueError("name:key,name:key expected")
        hashed = hash_key(key)
        if not KEY_HASH.fullmatch(hashed):
            raise ValueError(f"the key of {name!r}: sha256: and 64 hexadecimal digits expected")
        if name in keys.values():
            raise ValueError(f"the name {name!r} appears twice")
        if hashed in keys:
            raise ValueError(f"{keys[hashed]!r} and {name!r} have the same key")
        keys[hashed] = name
    return keys


@dataclass(frozen=True)
class RateLimit:
    """How many requests in how long."""

    requests: int
    window: timedelta


def _parse_rate(value: object) -> object:
    """Turn `REQUESTS/SECONDS` into a limit."""
    if not isinstance(value, str):
        return value
    requests, _, seconds = (part.strip() for part in value.partition("/"))
    try:
        limit = RateLimit(int(requests), timedelta(seconds=float(seconds)))
    except (ValueError, OverflowError) as error:
        raise ValueError("REQUESTS/SECONDS expected, 600/60 for instance") from error
    if limit.requests < 1 or not MIN_WINDOW <= limit.window <= MAX_WINDOW:
        raise ValueError("at least one request expected, in one second to one day")
    return limit


def _parse_networks(value: object) -> object:
    """Turn `10.0.0.0/8,::1/128` into a tuple, each a network."""
    if not isinstance(value, str):
        return value
    networks = tuple(filter(None, (part.strip() for part in value.split(","))))
    for network in networks:
        ipaddress.ip_network(network)
    return networks


def _check_secrets(value: object) -> object:
    """Check Standard Webhooks secrets: one, or several with commas between while they rotate."""
    if not isinstance(value, str):
        return value
    for secret in value.split(","):
        _check_secret(secret.strip())
    return value


def _parse_key_secrets(value: object) -> object:
    """Turn `name:whsec_…,…` into the secrets of each key; a name may come twice, to rotate."""
    if not isinstance(value, str):
        return value
    secrets: dict[str, list[SecretStr]] = {}
    for entry in filter(None, (part.strip() for part in value.split(","))):
        name, separator, secret = entry.partition(":")
        if not (name and separator):
            raise ValueError("name:whsec_…,name:whsec_… expected")
        _check_secret(secret)
        secrets.setdefault(name, []).append(SecretStr(secret))
    return secrets


def _parse_schedule(value: object) -> object:
    """Turn `0,5,300` into seconds, each after the attempt before."""
    if not isinstance(value, str):
        return value
    delays = tuple(float(part) for part in value.split(","))
    if not all(0 <= delay <= MAX_DELAY for delay in delays):
        raise ValueError(f"seconds between 0 and {MAX_DELAY:.0f} expected, commas between")
    return delays


def _check_secret(value: str) -> None:
    """Check a Standard Webhooks secret: `whsec_` and 24 to 64 bytes in base64."""
    try:
        secret = base64.b64decode(value.removeprefix("whsec_"), validate=True)
    except binascii.Error as error:
        raise ValueError(f"whsec_ and base64 expected: {error}") from error
    if not value.startswith("whsec_") or not 24 <= len(secret) <= 64:
        raise ValueError("whsec_ and 24 to 64 bytes in base64 expected")


def _parse_failpoints(value: object) -> object:
    """Turn `NAME=ACTION,…` into what is armed."""
    return failpoints.parse(value) if isinstance(value, str) else value


HttpUrl = Annotated[str, Field(pattern=r"^https?://")]


class Settings(BaseSettings):
    """Every setting of every part. Built once by each program, never changed."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=ENV_FILE, extra="ignore", frozen=True, env_ignore_empty=True
    )

    url: HttpUrl = "http://127.0.0.1:8000"
    api_key: SecretStr | None = None

    redis_url: Annotated[str, Field(pattern=r"^rediss?://")] = "redis://127.0.0.1:6379/0"

    s3_endpoint_url: HttpUrl | None = None
    s3_public_endpoint_url: HttpUrl | None = None
    s3_bucket: str = "darkroom"
    s3_region: str = "us-east-1"
    s3_access_key_id: str | None = None
    s3_secret_access_key: SecretStr | None = None

    catalog: Path | None = None
    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    memory_budget: Annotated[ByteSize, Field(ge=1)] | None = None
    worker_threads: int = Field(8, ge=1, le=256)
    drain_seconds: float = Field(8.0, ge=0, allow_inf_nan=False)

    api_keys: Annotated[dict[str, str], NoDecode, BeforeValidator(_parse_keys)] = {}
    webhook_secret: Annotated[SecretStr | None, BeforeValidator(_check_secrets)] = None
    webhook_secrets: Annotated[
        dict[str, list[SecretStr]], NoDecode, BeforeValidator(_parse_key_secrets)
    ] = {}
    webhook_schedule: Annotated[tuple[float, ...], NoDecode, BeforeValidator(_parse_schedule)] = ()
    webhook_allow: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parse_networks)] = ()

    result_ttl: int = Field(86_400, ge=1)
    # As much as S3 writes and copies in one step, at most.
    max_upload_bytes: int = Field(2 * 1024**3, ge=1, le=5 * 1024**3)
    max_latents_bytes: int = Field(64 * 1024 * 1024, ge=1)
    max_batch_bytes: int = Field(2 * 1024**3, ge=1, le=5 * 1024**3)
    max_pixels: int = Field(1 << 27, ge=64)
    rate_limit: Annotated[RateLimit | None, NoDecode, BeforeValidator(_parse_rate)] = None
    max_queued: int = Field(100_000, ge=1)
    lease_seconds: float = Field(15.0, gt=0, allow_inf_nan=False)
    max_attempts: int = Field(3, ge=1)
    attempt_seconds: float = Field(1800.0, gt=0, allow_inf_nan=False)
    failpoints: Annotated[
        dict[str, tuple[str, int]], NoDecode, BeforeValidator(_parse_failpoints)
    ] = {}

    def secrets_of(self, owner: str) -> tuple[str, ...]:
        """Give the secrets that sign an owner's webhooks: the key's own, else the common ones."""
        own = self.webhook_secrets.get(owner)
        if own:
            return tuple(secret.get_secret_value() for secret in own)
        if self.webhook_secret is None:
            return ()
        return tuple(part.strip() for part in self.webhook_secret.get_secret_value().split(","))

    @classmethod
    def load(cls, **overrides: Any) -> Settings:
        """Read the environment and `.env`; `overrides` come from command-line options.

        Raises:
            SettingsError: an unknown or invalid variable, named, with the reason.
        """
        _refuse_unknown(cls)
        try:
            return cls(**overrides)
        except ValidationError as error:
            faults = (
                f"{PREFIX}{'.'.join(str(part) for part in fault['loc'][:1]).upper()}: "
                f"{fault['msg'].removeprefix('Value error, ')}"
                for fault in error.errors(include_input=False, include_url=False)
            )
            raise SettingsError("; ".join(faults)) from None


def _refuse_unknown(settings: type[Settings]) -> None:
    known = {PREFIX + name.upper() for name in settings.model_fields}
    present = {name.upper() for name in (*os.environ, *dotenv_values(ENV_FILE))}
    unknown = sorted(name for name in present if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise SettingsError(
            f"{', '.join(unknown)}: no such setting. Known: {', '.join(sorted(known))}"
        )
