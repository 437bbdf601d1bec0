"""The client's wheel, alone in a clean environment."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.conftest import Deployment, make_latents

CLIENT = Path(__file__).parents[2] / "client"
SERVER_PARTS = ("torch", "celery", "boto3", "fastapi", "redis", "darkroom_infra", "darkroom_api")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing but the client's wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(CLIENT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("darkroom-*.whl")
    venv.create(folder / "venv", with_pip=True)
    binaries = folder / "venv" / "bin"
    subprocess.run([binaries / "pip", "install", "--quiet", wheel], check=True)
    return binaries


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command away from the source tree."""
    return subprocess.run(
        list(map(str, command)),
        cwd=Path(command[0]).parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_client_needs_none_of_the_servers_parts(clean: Path) -> None:
    """In a clean environment the package imports, and nothing of the server is installed."""
    code = (
        "import importlib.util as u, darkroom; darkroom.Client, darkroom.AsyncClient; "
        f"print([name for name in {SERVER_PARTS} if u.find_spec(name)])"
    )
    done = run(clean / "python", "-c", code)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_command_line_works_alone(
    clean: Path, installation: Deployment, tmp_path: Path
) -> None:
    """The installed command lists its commands, and develops latents with a service elsewhere."""
    assert "submit" in run(clean / "darkroom", "--help").stdout
    latents = tmp_path / "some.safetensors"
    latents.write_bytes(make_latents(1, 4, 8, 8))
    command = (clean / "darkroom", "submit", latents, "--vae", "demo", "--wait", "-o", tmp_path)
    done = run(*command, DARKROOM_URL=installation.api_url)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")
