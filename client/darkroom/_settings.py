"""Where the service is and which key is shown to it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from darkroom._errors import SettingsError

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE = "DARKROOM_URL"
KEY_VARIABLE = "DARKROOM_API_KEY"


@dataclass(frozen=True)
class Settings:
    """The address of the API, without a slash at its end, and the key."""

    url: str
    api_key: str | None = field(repr=False)


def load_settings(url: str | None = None, api_key: str | None = None) -> Settings:
    """Take what was given, else the environment, else a `.env` file here, else the default.

    Raises:
        SettingsError: names the setting that cannot be used and says why.
    """
    values = {**_read_env_file(Path(".env")), **os.environ}
    key = api_key if api_key is not None else values.get(KEY_VARIABLE)
    return Settings(_check_url(url or values.get(URL_VARIABLE) or DEFAULT_URL), _check_key(key))


def _read_env_file(path: Path) -> Mapping[str, str]:
    """Read the two settings of the client from a file of `NAME=value` lines."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = (line.removeprefix("export ").partition("=") for line in lines if "=" in line)
    return {
        name.strip(): value.strip().strip("\"'")
        for name, _, value in pairs
        if name.strip() in (URL_VARIABLE, KEY_VARIABLE)
    }


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise SettingsError(
            f"{URL_VARIABLE}: {url!r} is no address such as {DEFAULT_URL} or https://example.com"
        )
    return url.strip().rstrip("/")


def _check_key(key: str | None) -> str | None:
    key = (key or "").strip()
    if not key.isascii() or not key.isprintable():
        raise SettingsError(f"{KEY_VARIABLE}: only printable ASCII characters can be sent")
    return key or None
