"""Parts that a test may kill."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from darkroom_infra.embedded.stack import prepare
from darkroom_infra.embedded.supervisor import Program
from darkroom_infra.settings import Settings
from tests.conftest import eventually


@dataclass
class Valkey:
    """A Valkey server of a test's own, on one port and one data folder."""

    url: str
    program: Program
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process = subprocess.Popen(self.program.command, stdout=subprocess.DEVNULL)
        eventually(self.program.ready)

    def kill(self) -> None:
        """End it outright, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A running Valkey."""
    stack = prepare(tmp_path / "valkey", None, 0, Settings())
    server = Valkey(stack.redis_url, stack.valkey())
    server.start()
    yield server
    server.kill()
