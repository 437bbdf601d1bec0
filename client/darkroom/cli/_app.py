"""The root command: it knows all commands and imports the one that is called."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from darkroom.cli import _commands
from darkroom.cli._exits import exit_statuses
from darkroom.cli._plugins import describe_plugin, find_plugins, load_plugin


class Root(TyperGroup):
    """The client's own commands, then those of plugins."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Name all commands."""
        own = super().list_commands(ctx)
        return [*own, *(name for name in find_plugins() if name not in own)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Find a command; for a plugin, one that only describes it."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in find_plugins():
            return own
        return describe_plugin(find_plugins()[cmd_name])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command to be called; a plugin is imported here."""
        name, command, rest = super().resolve_command(ctx, args)
        plugin = find_plugins().get(name or "")
        if plugin is None or name in self.commands:
            return name, command, rest
        return name, load_plugin(plugin), rest

    def invoke(self, ctx: Any) -> Any:
        """Call the command."""
        with exit_statuses():
            return super().invoke(ctx)


def command() -> Any:
    """Put the root command together."""
    app = typer.Typer(
        cls=Root, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False
    )
    app.callback()(_root)
    for function in _commands.COMMANDS:
        app.command(function.__name__.removesuffix("_"))(function)
    return get_command(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"darkroom {version('darkroom')}")
        raise typer.Exit


def _root(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Develop the latents of diffusion models into pictures.

    The service's address is taken from DARKROOM_URL, the key from DARKROOM_API_KEY.
    """
