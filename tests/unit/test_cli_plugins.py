"""The root command: quick help, the version, and commands of other distributions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "httpx", "numpy", "PIL", "celery", "pydantic", "boto3")

PLUGIN = '''
from typing import Annotated
import typer
print("imported")

def develop(times: Annotated[int, typer.Option(help="How often.")] = 1) -> None:
    """Develop by hand.

    More about it.
    """
    typer.echo("developed " * times)
'''


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which a distribution with three commands is installed."""
    package = tmp_path / "darkroom_test_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "commands.py").write_text(PLUGIN)
    (package / "broken.py").write_text('"""Doc."""\nimport no_such_module\n')
    metadata = tmp_path / "darkroom_test_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: x\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[darkroom.commands]\n"
        "develop = darkroom_test_plugin.commands:develop\n"
        "broken = darkroom_test_plugin.broken:run\n"
        "list = darkroom_test_plugin.broken:run\n"
    )
    return {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "100"}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return subprocess.run(
        [sys.executable, "-m", "darkroom", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_lists_plugins_without_importing_them(environment: dict[str, str]) -> None:
    """The help has each command's own line, and imports neither plugins nor anything heavy."""
    code = (
        "import sys\nsys.argv = ['darkroom', '--help']\n"
        "from darkroom.cli import main\n"
        "try:\n    main()\nfinally:\n"
        f"    print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "LOADED []" in done.stdout
    assert "imported" not in done.stdout
    assert "Develop by hand." in done.stdout
    assert "broken" in done.stdout
    assert "List jobs, newest first." in done.stdout


def test_plugins_are_called(environment: dict[str, str]) -> None:
    """A plugin's function is a command with options and help of its own."""
    done = run(environment, "develop", "--times", "2")
    assert (done.returncode, done.stdout) == (0, "imported\ndeveloped developed \n")
    assert "How often." in run(environment, "develop", "--help").stdout


def test_broken_plugins_are_told_when_called(environment: dict[str, str]) -> None:
    """A plugin that cannot be imported says why when it is called, and disturbs nothing else."""
    done = run(environment, "broken")
    assert done.returncode == 1
    assert "no_such_module" in done.stderr
    assert "Traceback" not in done.stderr


def test_plugins_do_not_replace_own_commands(environment: dict[str, str]) -> None:
    """A plugin cannot take the name of one of the client's commands."""
    assert "newest first" in run(environment, "list", "--help").stdout


def test_version(environment: dict[str, str]) -> None:
    """--version prints the installed version."""
    done = run(environment, "--version")
    assert done.returncode == 0
    assert done.stdout.startswith("darkroom 0.")
