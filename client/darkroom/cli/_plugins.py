"""Commands of other distributions: entry points of the group `darkroom.commands`.

A name stands for a plain function with typer's annotations. Nothing of a plugin is imported before
it is called for; its line in the help is read from its source.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from darkroom.cli._exits import ExitStatus, say

GROUP = "darkroom.commands"


@cache
def find_plugins() -> Mapping[str, EntryPoint]:
    """Find the commands that other distributions bring, sorted by name."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}


def describe_plugin(point: EntryPoint) -> Any:
    """Make a command that stands for a plugin in the list of commands."""

    def stand_in() -> None:
        raise NotImplementedError

    stand_in.__doc__ = _docstring(point)
    return _as_command(point.name, stand_in)


def load_plugin(point: EntryPoint) -> Any:
    """Import a plugin and make a command of it.

    Raises:
        typer.Exit: it cannot be imported; why has been said.
    """
    try:
        function = point.load()
    except (ImportError, AttributeError) as error:
        say(
            f"the command {point.name} cannot be loaded: {type(error).__name__}: {error} - "
            f"install what is missing, or repair the package of {point.value}"
        )
        raise typer.Exit(ExitStatus.FAILED) from error
    return _as_command(point.name, function)


def _as_command(name: str, function: Callable[..., Any]) -> Any:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name)(function)
    return get_command(app)


def _docstring(point: EntryPoint) -> str:
    """Read a function's docstring without importing anything; nothing where that cannot be."""
    for file in _source_files(point.module):
        try:
            module = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        for statement in module.body:
            if isinstance(statement, ast.FunctionDef) and statement.name == point.attr:
                return ast.get_docstring(statement) or ""
    return ""


def _source_files(module: str) -> Iterator[Path]:
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return
    if spec is None:
        return
    if not rest and spec.origin:
        yield Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        if rest:
            yield Path(folder, *rest).with_suffix(".py")
            yield Path(folder, *rest, "__init__.py")
