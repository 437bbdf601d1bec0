"""How the service refuses to start: at once, with status 2, and naming what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("variables", "arguments", "words"),
    [
        ({"DARKROOM_REDIS_URI": "redis://x"}, (), ("DARKROOM_REDIS_URI", "DARKROOM_REDIS_URL")),
        ({"DARKROOM_MAX_PIXELS": "many"}, (), ("DARKROOM_MAX_PIXELS", "integer")),
        ({"DARKROOM_CATALOG": "nowhere.toml"}, (), ("nowhere.toml", "No such file")),
        ({}, ("--host", "0.0.0.0"), ("0.0.0.0", "DARKROOM_API_KEYS")),
    ],
    ids=["unknown setting", "invalid setting", "missing catalogue", "open without keys"],
)
def test_refuses_to_start(
    tmp_path: Path, variables: dict[str, str], arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """A service that cannot serve as it is set up says so, and does not start half."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")
    }
    ended = subprocess.run(
        [sys.executable, "-m", "darkroom", "api", "--port", "0", *arguments],
        env=inherited | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    for word in words:
        assert word in ended.stderr
    assert "Traceback" not in ended.stderr
