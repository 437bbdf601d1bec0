"""`darkroom up`, `darkroom doctor` and `darkroom recover`."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from .embedded.stack import Stack
    from .embedded.supervisor import Supervisor


def up(
    data: Annotated[Path, typer.Option(help="folder for data, logs and addresses")] = Path(
        ".darkroom"
    ),
    workers: Annotated[int, typer.Option(min=0, help="number of decode workers")] = 1,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="the API's port (8000, else a free one)")
    ] = None,
) -> None:
    """Run the embedded stack: Valkey, SeaweedFS, the API and workers; Ctrl-C stops it."""
    from .embedded.binaries import MissingBinaryError
    from .embedded.stack import ADDRESSES_FILE, StackError, locked, prepare
    from .embedded.supervisor import StartError, Supervisor
    from .settings import Settings, SettingsError
    from .telemetry import configure_logging

    configure_logging("up")
    data = data.resolve()
    try:
        settings = Settings.load()
        with locked(data):
            stack = prepare(data, port, workers, settings)
            logs = data / "logs"
            logs.mkdir(exist_ok=True)
            supervisor = Supervisor(logs)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: supervisor.request_stop())
            try:
                _run(stack, supervisor)
            finally:
                (data / ADDRESSES_FILE).unlink(missing_ok=True)
                supervisor.stop()
    except SettingsError as error:
        _fail(error, 2)
    except (StackError, MissingBinaryError, StartError) as error:
        _fail(error, 1)


def _run(stack: Stack, supervisor: Supervisor) -> None:
    from .embedded.stack import ADDRESSES_FILE

    servers = stack.servers()
    if servers:
        typer.echo(f"starting {', '.join(program.name for program in servers)} …", err=True)
        supervisor.start(*servers)
    typer.echo("starting the API and the workers …", err=True)
    workers = [stack.worker(number + 1) for number in range(stack.workers)]
    supervisor.start(stack.api(), stack.webhooks(), *workers)
    if supervisor.stopping:
        return
    addresses = {
        "api": stack.api_url,
        "page": f"{stack.api_url}/",
        "docs": f"{stack.api_url}/docs",
        "s3": stack.s3_url,
        "redis": stack.redis_url,
        "webhook_secret": stack.webhook_secret,
        "logs": str(stack.data / "logs"),
    }
    (stack.data / ADDRESSES_FILE).write_text(json.dumps(addresses))
    for name, address in addresses.items():
        typer.echo(f"{name:>14}  {address}")
    typer.echo("ready. Ctrl-C stops everything.", err=True)
    supervisor.watch()
    typer.echo("stopping …", err=True)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Check Redis, S3, device, catalogue and settings, and say what to do about each fault."""
    from .doctor import Finding, Level, examine
    from .settings import Settings, SettingsError

    try:
        findings = list(examine(Settings.load()))
    except SettingsError as error:
        findings = [Finding("settings", Level.FAULT, str(error), "correct or unset it")]
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            mark = {"fine": "ok  ", "warning": "warn", "fault": "FAIL"}[finding.level]
            typer.echo(f"{mark}  {finding.part}: {finding.detail}")
            if finding.remedy:
                typer.echo(f"      -> {finding.remedy}")
    if any(finding.level is Level.FAULT for finding in findings):
        raise typer.Exit(1)


def recover(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Rebuild the job records and the queue from S3, after Redis was lost.

    API and workers do so by themselves; this does it at once and says what it found.
    """
    from .keeper import Sweeper
    from .ledger import Ledger
    from .records import RecordsClient, RecordsUnavailableError
    from .settings import Settings, SettingsError
    from .store import ObjectStore, StoreConfig, StoreError

    try:
        settings = Settings.load()
    except SettingsError as error:
        _fail(error, 2, "recover")
    records = RecordsClient(settings.redis_url)
    ledger = Ledger(ObjectStore(StoreConfig.from_settings(settings)))
    try:
        found = Sweeper(records, ledger).recover()
    except (RecordsUnavailableError, StoreError) as error:
        _fail(error, 3, "recover")
    if as_json:
        typer.echo(json.dumps({"restored": found.restored, "ended": found.ended}))
    else:
        typer.echo(f"{found.restored} jobs put on record, {found.ended} brought to their end")


def _fail(error: Exception, status: int, command: str = "up") -> NoReturn:
    typer.echo(f"darkroom {command}: {error}", err=True)
    raise typer.Exit(status) from error
