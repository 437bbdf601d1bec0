"""Ports that nobody takes while their server is down."""

from __future__ import annotations

import random

from darkroom_infra.embedded.ports import is_free

LOWEST, HIGHEST = 15_000, 32_000
"""Below the range that Linux gives to outgoing connections: a server that is started again must
find its port free."""

_given: set[int] = set()


def take_port() -> int:
    """Find a port that was never given before in this run."""
    while True:
        port = random.randint(LOWEST, HIGHEST)
        if port not in _given and is_free(port):
            _given.add(port)
            return port
