"""The command `listen`: a webhook receiver on loopback that verifies and prints events."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import typer

from darkroom.cli._exits import ExitStatus, say
from darkroom_wire.webhooks import (
    WebhookSecretError,
    WebhookVerificationError,
    parse_secret,
    verify,
)

SECRET_VARIABLE = "DARKROOM_WEBHOOK_SECRET"  # noqa: S105 - a name
HOST = "127.0.0.1"
MAX_BODY = 1 << 20


def listen(port: int, secret: str | None, *, as_json: bool, count: int | None) -> None:
    """Receive webhooks until Ctrl-C, or until so many were received."""
    server = ThreadingHTTPServer((HOST, port), _handler(_read_secrets(secret), as_json=as_json))
    say(f"listening on http://{HOST}:{server.server_port}/ (Ctrl-C ends)")
    try:
        if count is None:
            server.serve_forever()
        for _ in range(count or 0):
            server.handle_request()
    except KeyboardInterrupt as error:
        raise typer.Exit(ExitStatus.INTERRUPTED) from error
    finally:
        server.server_close()


def _read_secrets(secret: str | None) -> Sequence[str]:
    """Take the secrets that were given, else those of the environment; several have commas."""
    text = secret or os.environ.get(SECRET_VARIABLE)
    if not text:
        say(f"give --secret or set {SECRET_VARIABLE}: darkroom up prints its own")
        raise typer.Exit(ExitStatus.USAGE)
    secrets = [part.strip() for part in text.split(",")]
    try:
        for part in secrets:
            parse_secret(part)
    except WebhookSecretError as error:
        say(str(error))
        raise typer.Exit(ExitStatus.USAGE) from error
    return secrets


def _handler(secrets: Sequence[str], *, as_json: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Verify a webhook, print it, and answer."""
            length = self.headers.get("Content-Length", "")
            if not length.isdigit() or int(length) > MAX_BODY:
                self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                return
            body = self.rfile.read(int(length))
            headers = {name.lower(): value for name, value in self.headers.items()}
            try:
                verify(secrets, headers, body, now=time.time())
            except WebhookVerificationError as error:
                say(f"refused: {error}")
                self._answer(HTTPStatus.UNAUTHORIZED)
                return
            typer.echo(body.decode() if as_json else _line(body))
            self._answer(HTTPStatus.NO_CONTENT)

        def _answer(self, status: HTTPStatus) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Print events only."""

    return Handler


def _line(body: bytes) -> str:
    """Sum an event up in one line."""
    event = json.loads(body)
    data = event["data"]
    outputs = " ".join(output["url"] for output in data.get("outputs", ()))
    return f"{event['timestamp']}  {event['type']:<16}  {data['id']}  {outputs}".rstrip()
