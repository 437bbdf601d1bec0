"""`darkroom submit DIR` against a real service: it goes on after any stop, and never repeats."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from darkroom_wire.tensors import Tensor, TensorInfo, from_raw, to_safetensors
from tests.conftest import Deployment, Servers, eventually, make_latents

COUNT = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a few latents."""
    folder = tmp_path / "latents"
    folder.mkdir()
    for number in range(COUNT):
        values = np.random.default_rng(number).standard_normal((1, 4, 8, 8)).astype("float32")
        np.save(folder / f"{number}.npy", values)
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where results go."""
    return tmp_path / "pictures"


@pytest.fixture
def service(servers: Servers, tmp_path: Path) -> Iterator[Deployment]:
    """An API of its own, without a worker."""
    with servers.deploy(tmp_path) as deployment:
        deployment.start_api()
        yield deployment


def command(deployment: Deployment, *arguments: str | Path) -> tuple[list[str], dict[str, str]]:
    """Make the command line and the environment of a submission."""
    line = [sys.executable, "-m", "darkroom", "submit", *map(str, arguments), "--vae", "demo"]
    return line, {**os.environ, "DARKROOM_URL": deployment.api_url}


def submit(deployment: Deployment, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    line, environment = command(deployment, *arguments)
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=170)


def begin(deployment: Deployment, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start the command."""
    line, environment = command(deployment, *arguments)
    return subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def batches(deployment: Deployment) -> list[dict[str, Any]]:
    """List the batches that the service knows."""
    listed: list[dict[str, Any]] = httpx.get(f"{deployment.api_url}/v1/batches").json()["results"]
    return listed


def pictures(output: Path) -> list[str]:
    """List what was saved."""
    return sorted(path.name for path in output.iterdir() if not path.name.startswith("."))


EXPECTED = [f"{number}.png" for number in range(COUNT)]


def test_a_folder_becomes_pictures(service: Deployment, folder: Path, output: Path) -> None:
    """Each file's picture is saved under its name; the same command again submits nothing."""
    service.start_worker()
    done = submit(service, folder, "--wait", "-o", output)
    assert (done.returncode, done.stderr) == (0, "")
    assert pictures(output) == EXPECTED
    for name in EXPECTED:
        with Image.open(output / name) as picture:
            assert picture.size == (64, 64)
    assert [batch["total"] for batch in batches(service)] == [COUNT]
    times = [(output / name).stat().st_mtime_ns for name in EXPECTED]
    again = submit(service, folder, "--wait", "-o", output)
    assert (again.returncode, len(batches(service))) == (0, 1)
    assert [(output / name).stat().st_mtime_ns for name in EXPECTED] == times
    # What is new, and only that, is a batch of its own.
    shutil.copy(folder / "0.npy", folder / "new.npy")
    more = submit(service, folder, "--wait", "-o", output)
    assert more.returncode == 0
    assert pictures(output) == [*EXPECTED, "new.png"]
    assert [batch["total"] for batch in batches(service)] == [1, COUNT]


def test_killed_while_it_waits(service: Deployment, folder: Path, output: Path) -> None:
    """After `kill -9` the same command saves everything, and nothing is submitted twice."""
    with begin(service, folder, "--wait", "-o", output) as process:
        eventually(lambda: batches(service))
        process.kill()
    service.start_worker()
    done = submit(service, folder, "--wait", "--resume", "-o", output)
    assert done.returncode == 0, done.stderr
    assert pictures(output) == EXPECTED
    assert [batch["total"] for batch in batches(service)] == [COUNT]


def test_interrupted(service: Deployment, folder: Path, output: Path) -> None:
    """Ctrl-C ends with 130 and says how to go on; that works."""
    with begin(service, folder, "--wait", "-o", output) as process:
        eventually(lambda: batches(service))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "same command" in said
    service.start_worker()
    assert submit(service, folder, "--wait", "-o", output).returncode == 0
    assert pictures(output) == EXPECTED
    assert len(batches(service)) == 1


@pytest.mark.parametrize("point", ["submit.latents_stored", "submit.recorded"])
def test_the_service_died_before_it_answered(
    servers: Servers, tmp_path: Path, folder: Path, output: Path, point: str
) -> None:
    """Where nobody knows whether a batch was accepted, it is one batch in the end."""
    with servers.deploy(tmp_path, failpoints=f"{point}=kill") as deployment:
        deployment.start_api()
        lost = submit(deployment, folder, "-o", output)
        assert lost.returncode == 3, lost.stderr
        assert "same command" in lost.stderr
        environment = dict(deployment.environment)
        del environment["DARKROOM_FAILPOINTS"]
        deployment.environment = environment
        address = deployment.api_url
        port = address.rpartition(":")[2]
        process = deployment._spawn("api", "--port", port)
        deployment.await_ready(process)
        found = submit(deployment, folder, "-o", output)
        assert found.returncode == 0, found.stderr
        assert [batch["total"] for batch in batches(deployment)] == [COUNT]
        assert batches(deployment)[0]["id"] in found.stdout
        assert httpx.get(f"{address}/v1/queue").json()["queued"] == COUNT


def test_files_at_fault(service: Deployment, folder: Path, output: Path) -> None:
    """What cannot be sent, or does not fit, is named; the other files go on. The status is 2."""
    (folder / "torn.safetensors").write_bytes(b"nothing")
    (folder / "many.safetensors").write_bytes(
        to_safetensors([from_raw(bytes(16), [1, 1, 2, 2], "float32", name) for name in "ab"])
    )
    (folder / "wrong.safetensors").write_bytes(make_latents(1, 5, 8, 8))
    (folder / "notes.txt").write_text("not latents")
    np.save(folder / "ints.npy", np.zeros((1, 4, 8, 8), "int64"))
    service.start_worker()
    done = submit(service, folder, "--wait", "-o", output)
    assert done.returncode == 2
    for name in ("torn.safetensors", "many.safetensors", "wrong.safetensors", "ints.npy"):
        assert name in done.stderr
    assert "channels" in done.stderr
    assert "notes.txt" not in done.stderr
    assert pictures(output) == EXPECTED
    assert [batch["total"] for batch in batches(service)] == [COUNT]


def test_files_are_grouped_by_their_scaling(
    service: Deployment, folder: Path, output: Path
) -> None:
    """ComfyUI's files are scaled in their own ways: each gives what it gives alone."""
    latents = from_raw(np.ones((1, 4, 8, 8), "float32").tobytes(), [1, 4, 8, 8], "float32")
    named = Tensor(TensorInfo("latent_tensor", "float32", (1, 4, 8, 8)), latents.data)
    marker = Tensor(TensorInfo("latent_format_version_0", "float32", (0,)), memoryview(b""))
    (folder / "old.latent").write_bytes(to_safetensors([named]))
    (folder / "new.latent").write_bytes(to_safetensors([named, marker]))
    service.start_worker()
    done = submit(service, folder, "--wait", "-o", output)
    assert done.returncode == 0, done.stderr
    assert sorted(batch["total"] for batch in batches(service)) == [1, 1, COUNT]
    for name in ("old", "new"):
        alone = output / "alone"
        single = submit(service, folder / f"{name}.latent", "--wait", "-o", alone)
        assert single.returncode == 0
        assert (alone / f"{name}.png").read_bytes() == (output / f"{name}.png").read_bytes()


def test_many_files_are_several_batches(
    service: Deployment, folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is divided into batches that the limits allow, in the order of its files."""
    from darkroom.cli import _folder
    from darkroom.cli._state import Entry

    entries = [Entry.of(folder / f"{number}.npy", str(number)) for number in range(COUNT)]
    monkeypatch.setattr(_folder, "BATCH_JOBS", 4)
    assert [len(part) for part in _folder._parts(iter(entries))] == [4, 2]
    monkeypatch.setattr(_folder, "BATCH_BYTES", 2 * entries[0].size)
    assert [len(part) for part in _folder._parts(iter(entries))] == [2, 2, 2]
    assert [entry.name for part in _folder._parts(iter(entries)) for entry in part] == [
        str(number) for number in range(COUNT)
    ]
    del service, output


def test_failed_jobs(servers: Servers, tmp_path: Path, folder: Path, output: Path) -> None:
    """Jobs that fail are told of, and the status is 1; again when the command is repeated."""
    catalogue = tmp_path / "catalogue.toml"
    catalogue.write_text('[vaes.demo]\nfamily = "sd"\nsource = "/nowhere"\n')
    with servers.deploy(tmp_path, catalog=str(catalogue)) as deployment:
        deployment.start_api()
        deployment.start_worker()
        for _ in range(2):
            done = submit(deployment, folder, "--wait", "-o", output)
            assert done.returncode == 1, done.stderr
            assert "failed" in done.stderr
        assert len(batches(deployment)) == 1


def test_nothing_to_do(service: Deployment, folder: Path, output: Path, tmp_path: Path) -> None:
    """No latents, nothing to resume, pictures in a folder: a usage error, and no request."""
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments in (
        (empty, "-o", output),
        (folder, "--resume", "-o", output),
        (folder, "--task", "encode", "-o", output),
    ):
        refused = submit(service, *arguments)
        assert refused.returncode == 2, refused.stderr
        assert refused.stderr.startswith("darkroom: ")
    assert batches(service) == []


def test_one_command_at_a_time(service: Deployment, folder: Path, output: Path) -> None:
    """Two commands for the same order do not submit side by side: the second one says so."""
    with begin(service, folder, "--wait", "-o", output) as process:
        eventually(lambda: batches(service))
        second = submit(service, folder, "--wait", "-o", output)
        process.kill()
    assert second.returncode == 2
    assert "another darkroom submit" in second.stderr
    assert len(batches(service)) == 1


def test_without_waiting(service: Deployment, folder: Path, output: Path) -> None:
    """The batches' ids are printed, with `--json` as documents; waiting later saves pictures."""
    printed = submit(service, folder, "--json", "-o", output)
    assert printed.returncode == 0, printed.stderr
    (document,) = json.loads(printed.stdout)
    assert (document["total"], document["status"]) == (COUNT, "queued")
    service.start_worker()
    assert submit(service, folder, "--wait", "-o", output).returncode == 0
    assert pictures(output) == EXPECTED
    assert [batch["id"] for batch in batches(service)] == [document["id"]]


def test_latents_are_never_replaced(service: Deployment, folder: Path) -> None:
    """Where results would have the names of the latents, they are not saved over them."""
    body = make_latents(1, 4, 8, 8)
    file = folder / "latents.safetensors"
    file.write_bytes(body)
    service.start_worker()
    done = submit(service, folder, "--format", "safetensors", "--wait", "-o", folder)
    assert done.returncode == 2
    assert "another folder" in done.stderr
    assert file.read_bytes() == body
