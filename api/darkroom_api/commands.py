"""`darkroom api`: the HTTP service as a program of its own."""

from __future__ import annotations

import ipaddress
from typing import Annotated

import typer


def api(
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on")] = 8000,
) -> None:
    """Run the HTTP service against the configured Redis and S3."""
    from darkroom_infra.catalog import Catalog, CatalogError
    from darkroom_infra.settings import Settings, SettingsError
    from darkroom_infra.telemetry import configure_logging, get_logger

    try:
        settings = Settings.load()
        catalog = Catalog.load(settings.catalog)
    except (SettingsError, CatalogError) as error:
        typer.echo(f"darkroom api: {error}", err=True)
        raise typer.Exit(2) from error
    if not settings.api_keys and not _is_loopback(host):
        typer.echo(
            f"darkroom api: without keys only loopback is served, not {host}: "
            "set DARKROOM_API_KEYS=name:key,…",
            err=True,
        )
        raise typer.Exit(2)

    from .app import create_app
    from .server import serve

    configure_logging("api")
    if not settings.api_keys:
        get_logger("api").info("api.no_keys", detail="no DARKROOM_API_KEYS: serving loopback only")
    serve(create_app(settings, catalog), host, port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
