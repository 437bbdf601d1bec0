"""`darkroom doctor`: checks each part, and says what to do about each fault.

Other packages add checks through entry points of the group `darkroom.checks`: functions from
`Settings` to findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import entry_points

from .records import RecordsClient, RecordsUnavailableError
from .settings import Settings
from .store import ObjectStore, StoreConfig, StoreError

GROUP = "darkroom.checks"


class Level(StrEnum):
    """How bad a finding is."""

    FINE = "fine"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """What was found of one part, and what to do about it."""

    part: str
    level: Level
    detail: str
    remedy: str = ""


Check = Callable[[Settings], list[Finding]]


def examine(settings: Settings) -> Iterator[Finding]:
    """Run every check, those of other packages too."""
    yield from check_redis(settings)
    yield from check_s3(settings)
    yield from check_access(settings)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            check: Check = entry.load()
            yield from check(settings)
        except ImportError as error:
            yield Finding(
                entry.name,
                Level.WARNING,
                f"not checked: {error}",
                "install darkroom-server[worker] where a worker is to run",
            )


def check_redis(settings: Settings) -> list[Finding]:
    """Ask Redis whether it answers, and whether it keeps what it is told."""
    records = RecordsClient(settings.redis_url)
    try:
        server = records.server()
        epoch = records.epoch()
        policy, has_log = records.keeping()
    except RecordsUnavailableError as error:
        return [Finding("redis", Level.FAULT, str(error), "start Redis or set DARKROOM_REDIS_URL")]
    finally:
        records.close()
    version = server.get("valkey_version") or server.get("redis_version")
    findings = [Finding("redis", Level.FINE, f"version {version}")]
    if epoch is None:
        findings.append(
            Finding(
                "redis",
                Level.WARNING,
                "the job records are not there yet, or were lost",
                "start an API or a worker: it rebuilds them from S3",
            )
        )
    if policy != "noeviction":
        findings.append(
            Finding(
                "redis",
                Level.WARNING,
                f"maxmemory-policy is {policy}: when memory is full, it drops job records",
                "set maxmemory-policy noeviction",
            )
        )
    if not has_log:
        findings.append(
            Finding(
                "redis",
                Level.WARNING,
                "there is no append-only file: a restart forgets every job until a rebuild from S3",
                "set appendonly yes",
            )
        )
    return findings


def check_s3(settings: Settings) -> list[Finding]:
    """Ask S3 for the bucket, and whether it honours conditional PUT."""
    store = ObjectStore(StoreConfig.from_settings(settings))
    try:
        store.ensure_bucket()
        strong = store.honours_conditional_put()
    except StoreError as error:
        return [
            Finding("s3", Level.FAULT, str(error), "start S3 or correct the DARKROOM_S3_… settings")
        ]
    finally:
        store.close()
    if not strong:
        return [
            Finding(
                "s3",
                Level.WARNING,
                "the store ignores conditional PUT: one visible result cannot be promised",
                "use a store that honours If-None-Match",
            )
        ]
    return [Finding("s3", Level.FINE, f"bucket {store.bucket}, conditional PUT honoured")]


def check_access(settings: Settings) -> list[Finding]:
    """Say who may call."""
    if settings.api_keys:
        names = ", ".join(sorted(settings.api_keys.values()))
        return [Finding("access", Level.FINE, f"keys of {names}")]
    return [Finding("access", Level.FINE, "no keys: the API serves loopback only")]
