"""Runs the application with uvicorn."""

from __future__ import annotations

import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

GRACE_SECONDS = 3


class _Server(uvicorn.Server):
    """A server that answers those who wait when it is told to stop, instead of dropping them."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        services = getattr(self.config.app.state, "services", None)  # type: ignore[union-attr]
        if services is not None:
            services.waiters.close()


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until a signal comes; end with status 3 where the server cannot start."""
    server = _Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
            server_header=False,
        )
    )
    server.run()
    if not server.started:
        sys.exit(3)
