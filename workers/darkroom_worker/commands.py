"""`darkroom worker` and `darkroom webhooks`: each as a program of its own."""

from __future__ import annotations

import typer


def worker() -> None:
    """Run a decode worker against the configured Redis and S3."""
    from darkroom_infra.catalog import Catalog, CatalogError
    from darkroom_infra.settings import Settings, SettingsError
    from darkroom_infra.telemetry import configure_logging

    try:
        settings = Settings.load()
        catalog = Catalog.load(settings.catalog)
    except (SettingsError, CatalogError) as error:
        typer.echo(f"darkroom worker: {error}", err=True)
        raise typer.Exit(2) from error
    configure_logging("worker")

    from . import heap

    heap.prepare()

    from .loading import DeviceError
    from .program import run

    try:
        run(settings, catalog)
    except DeviceError as error:
        typer.echo(f"darkroom worker: {error}", err=True)
        raise typer.Exit(2) from error


def webhooks() -> None:
    """Deliver webhooks for the configured Redis and S3."""
    from darkroom_infra.settings import Settings, SettingsError
    from darkroom_infra.telemetry import configure_logging

    try:
        settings = Settings.load()
    except SettingsError as error:
        typer.echo(f"darkroom webhooks: {error}", err=True)
        raise typer.Exit(2) from error
    configure_logging("webhooks")

    from .webhooks.program import run

    run(settings)
