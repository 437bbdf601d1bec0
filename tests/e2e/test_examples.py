"""The examples do what they say, run as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from darkroom_infra.embedded.ports import free_ports
from tests.conftest import Deployment, Servers, eventually, make_latents
from tests.integration.test_webhooks import SECRET

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three files of latents."""
    folder = tmp_path_factory.mktemp("latents")
    for number in range(3):
        (folder / f"{number}.safetensors").write_bytes(make_latents(1, 4, 8, 8, seed=number))
    return folder


def run(darkroom: Deployment, *command: str, **environment: str) -> str:
    """Run a command against a service, and return what it printed."""
    finished = subprocess.run(
        command,
        env={**os.environ, "DARKROOM_URL": darkroom.api_url, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def size_of(path: Path) -> tuple[int, int]:
    """Read a picture's width and height."""
    with Image.open(path) as picture:
        return picture.size


def test_fire_and_forget(installation: Deployment, latents: Path) -> None:
    """Each file is a job when the program ends, and its picture comes without it."""
    printed = run(installation, sys.executable, str(EXAMPLES / "fire_and_forget.py"), str(latents))
    ids = printed.split()
    assert len(set(ids)) == 3
    with installation.client() as client:
        jobs = [client.get(f"/v1/jobs/{job_id}", params={"wait": 60}).json() for job_id in ids]
    assert {job["status"] for job in jobs} == {"succeeded"}


def test_as_completed(installation: Deployment, latents: Path, tmp_path: Path) -> None:
    """Every file has its picture, named after it."""
    script = str(EXAMPLES / "as_completed.py")
    run(installation, sys.executable, script, str(latents), str(tmp_path))
    pictures = sorted(tmp_path.glob("*.png"))
    assert [picture.stem for picture in pictures] == ["0", "1", "2"]
    assert {size_of(picture) for picture in pictures} == {(64, 64)}


def test_poll_with_curl(installation: Deployment, latents: Path, tmp_path: Path) -> None:
    """Curl alone is enough."""
    picture = tmp_path / "picture.png"
    run(
        installation,
        str(EXAMPLES / "poll_with_curl.sh"),
        str(latents / "0.safetensors"),
        str(picture),
    )
    assert size_of(picture) == (64, 64)


def test_generate_and_decode(installation: Deployment, tmp_path: Path) -> None:
    """A pipeline generates on while its latents are decoded elsewhere; all pictures come."""
    printed = run(
        installation, sys.executable, str(EXAMPLES / "generate_and_decode.py"), str(tmp_path)
    )
    assert printed.count("generated") == 6
    pictures = sorted(tmp_path.glob("*.png"))
    assert [picture.stem for picture in pictures] == [str(number) for number in range(6)]
    assert size_of(pictures[0]) == (256, 256)


@pytest.fixture
def darkroom(servers: Servers, tmp_path: Path) -> Iterator[Deployment]:
    """An installation that sends webhooks to loopback."""
    settings = {"webhook_secret": SECRET, "webhook_allow": "127.0.0.0/8"}
    with servers.deploy(tmp_path, **settings) as deployment:
        deployment.start_api()
        deployment.start_worker()
        deployment.start_courier()
        yield deployment


def test_webhook_receiver(darkroom: Deployment, tmp_path: Path) -> None:
    """The receiver fetches the picture of a job of which it is told, and refuses forgeries."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/hook"
    receiver = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "examples.webhook_receiver:app", "--port", str(port)],
        env={**os.environ, "DARKROOM_WEBHOOK_SECRET": SECRET, "PICTURES": str(tmp_path / "got")},
        cwd=ROOT,
    )
    try:
        eventually(lambda: answers(url), 60)
        assert httpx.post(url, json={"type": "job.succeeded"}).status_code == 401
        with darkroom.client() as client:
            job = client.post(
                "/v1/jobs",
                params={"vae": "demo", "callback_url": url},
                content=make_latents(1, 4, 8, 8),
                headers={"Content-Type": "application/x-safetensors"},
            ).json()
        picture = tmp_path / "got" / f"{job['id']}-0.png"
        eventually(lambda: picture.exists() and picture.stat().st_size, 60)
        assert size_of(picture) == (64, 64)
    finally:
        receiver.terminate()
        receiver.wait(15)


def answers(url: str) -> bool:
    """Whether somebody listens there."""
    try:
        httpx.get(url)
    except httpx.TransportError:
        return False
    return True
