"""`darkroom up` as a user runs it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from darkroom_infra.embedded.ports import free_ports
from tests.conftest import Servers, eventually, make_latents

HEADERS = {"Content-Type": "application/x-safetensors"}
STOP_SECONDS = 15


@contextmanager
def running(data: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run `darkroom up` on a port of its own, and end it whatever happens."""
    if "--port" not in options:
        options = (*options, "--port", str(free_ports(1)[0]))
    process = subprocess.Popen(
        [sys.executable, "-m", "darkroom", "up", "--data", str(data), *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(STOP_SECONDS + 5)
        if process.stderr is not None:
            process.stderr.close()


def api_of(data: Path, process: subprocess.Popen[str]) -> str:
    """Wait until the stack says where its API is."""
    addresses = data / "addresses.json"
    eventually(lambda: process.poll() is not None or addresses.exists(), 90)
    assert process.poll() is None, process.stderr and process.stderr.read()
    return str(json.loads(eventually(addresses.read_text))["api"])


def parts_of(process: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    """Name the processes of a running stack."""
    parts = {}
    for child in psutil.Process(process.pid).children():
        command = child.cmdline()
        own = command[-1] in ("worker", "webhooks")
        name = command[-1] if own else Path(command[0].split()[0]).name
        parts["api" if "api" in command else name] = child
    return parts


def test_a_stack_stops_in_order_and_goes_on(tmp_path: Path) -> None:
    """SIGTERM ends everything within 15 s with status 0; a new start does what was queued.

    Between the two, a part that dies is started again.
    """
    with running(tmp_path, "--workers", "0") as process:
        api = api_of(tmp_path, process)
        answer = httpx.post(
            f"{api}/v1/jobs?vae=demo", content=make_latents(1, 4, 8, 8), headers=HEADERS
        )
        assert answer.status_code == 202
        parts = parts_of(process)
        assert {"valkey-server", "weed", "api"} <= set(parts)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0
        assert time.monotonic() - started < STOP_SECONDS
        assert not any(part.is_running() for part in parts.values())
    with running(tmp_path, "--workers", "1") as process:
        api = api_of(tmp_path, process)
        url = f"{api}/v1/jobs/{answer.json()['id']}"
        job = httpx.get(url, params={"wait": 60}, timeout=70).json()
        assert job["status"] == "succeeded", job
        parts_of(process)["worker"].kill()
        again = httpx.post(
            f"{api}/v1/jobs?vae=demo",
            content=make_latents(1, 4, 8, 8, seed=1),
            headers={**HEADERS, "Prefer": "wait=60"},
            timeout=70,
        )
        assert again.json()["status"] == "succeeded", again.json()
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_SECONDS) == 0


def test_a_configured_redis_is_used(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With DARKROOM_REDIS_URL set, the stack runs without a Valkey of its own."""
    monkeypatch.setenv("DARKROOM_REDIS_URL", servers.stack.redis_url)
    with running(tmp_path, "--workers", "0") as process:
        api = api_of(tmp_path, process)
        assert httpx.get(f"{api}/readyz").status_code == 200
        assert set(parts_of(process)) == {"weed", "api", "webhooks"}


def test_two_stacks_do_not_share_a_folder(tmp_path: Path) -> None:
    """A second stack on the same data says so and ends with a status other than zero."""
    with running(tmp_path, "--workers", "0") as first:
        eventually(lambda: first.poll() is not None or (tmp_path / "lock").exists())
        with running(tmp_path, "--workers", "0") as second:
            assert second.wait(30) == 1
            assert second.stderr is not None
            assert "another stack runs" in second.stderr.read()


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    """A given port that is taken ends the start with a message."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with running(tmp_path, "--port", str(port)) as process:
            assert process.wait(30) == 1
            assert process.stderr is not None
            assert f"port {port} is taken" in process.stderr.read()


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    """A part that ends at once ends the stack, with the end of that part's log."""
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey" / "appendonlydir").write_text("no folder")
    with running(tmp_path, "--workers", "0") as process:
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert "valkey ended with status" in process.stderr.read()


@pytest.mark.parametrize("setting", ["DARKROOM_LEASE", "DARKROOM_MAX_ATTEMPTS"])
def test_bad_settings_are_refused(
    tmp_path: Path, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown or invalid setting ends the start with status 2 and its name."""
    monkeypatch.setenv(setting, "0")
    with running(tmp_path) as process:
        assert process.wait(30) == 2
        assert process.stderr is not None
        assert setting in process.stderr.read()


def test_a_worker_that_cannot_start_ends_the_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that is not there is named, with what to set, instead of restarts for ever."""
    monkeypatch.setenv("DARKROOM_DEVICE", "cuda:77")
    with running(tmp_path) as process:
        assert process.wait(90) == 1
        assert process.stderr is not None
        said = process.stderr.read()
        assert "worker-1 ended with status 2" in said
        assert "DARKROOM_DEVICE=cuda:77 cannot be used" in said
