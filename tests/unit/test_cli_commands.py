"""The command line as a process: what it prints, what it saves, and how it exits."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

PNG = b"\x89PNG\r\n\x1a\n"
PICTURES = {
    "one": [b"a picture"],
    "two": [b"first", b"second"],
    "latents": [b"latents"],
    "frames": [b"frames"],
}
TYPES = {"latents": "application/x-safetensors", "frames": "application/zip"}


class Service:
    """A service that accepts every job but those for the VAE `unknown`.

    A job's metadata says what becomes of it: a name in `PICTURES`, `fail`, or `hang`.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.waited_for = threading.Event()
        self.released = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                address = urlsplit(self.path)
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                query = {name: values[0] for name, values in parse_qs(address.query).items()}
                path = [part for part in address.path.split("/") if part]
                status, content = service.answer(self.command, path, query)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the names that http.server calls

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: list[str], query: dict[str, str]) -> tuple[int, Any]:
        """Answer one request."""
        match method, path:
            case "POST", ["v1", "jobs"]:
                return self._submit(query)
            case "GET", ["v1", "jobs"]:
                return 200, {"results": list(self.jobs.values()), "next": None}
            case "GET", ["v1", "vaes"]:
                return 200, {"results": [{"name": "demo", "family": "sd", "source": "built in"}]}
            case "GET", ["v1", "jobs", job_id, "result"]:
                return 200, self._pictures(job_id)[int(query["index"])]
            case _, ["v1", "jobs", job_id, *_] if job_id not in self.jobs:
                return 404, problem(404, "Not found")
            case "POST", ["v1", "jobs", job_id, "cancel"]:
                if self.jobs[job_id]["status"] != "queued":
                    return 409, problem(409, "Finished")
                self.jobs[job_id]["status"] = "canceled"
                return 200, self.jobs[job_id]
            case "DELETE", ["v1", "jobs", job_id]:
                del self.jobs[job_id]
                return 204, b""
            case _:
                return 200, self._look(path[2], "wait" in query)

    def _submit(self, query: dict[str, str]) -> tuple[int, Any]:
        if query["vae"] == "unknown":
            errors = [{"field": "vae", "message": "not in the catalogue"}]
            return 422, problem(422, "Unknown VAE", errors=errors)
        job_id = f"job-{len(self.jobs)}"
        self.jobs[job_id] = {
            "id": job_id,
            "status": "queued",
            "vae": query["vae"],
            "format": "png",
            "priority": "normal",
            "latents": {"shape": [1, 4, 8, 8], "dtype": "float16", "bytes": 512},
            "created_at": "2026-01-01T00:00:00Z",
            "metadata": json.loads(query.get("metadata", "{}")),
        }
        return 202, self.jobs[job_id]

    def _look(self, job_id: str, waits: bool) -> dict[str, Any]:
        job = self.jobs[job_id]
        if not waits or job["status"] != "queued":
            return job
        self.waited_for.set()
        becomes = job["metadata"].get("becomes", "one")
        if becomes == "hang":
            self.released.wait(60)
        elif becomes == "fail":
            error = {"type": "t", "title": "t", "detail": "out of memory"}
            job.update(status="failed", error=error)
        else:
            kind = TYPES.get(becomes, "image/png")
            outputs = [picture(content, kind) for content in PICTURES[becomes]]
            job.update(status="succeeded", outputs=outputs)
        return job

    def _pictures(self, job_id: str) -> list[bytes]:
        return PICTURES[self.jobs[job_id]["metadata"].get("becomes", "one")]


def picture(content: bytes, content_type: str) -> dict[str, Any]:
    """An output's description."""
    digest = hashlib.sha256(content).hexdigest()
    size = {"bytes": len(content), "width": 1, "height": 1}
    return {"url": "http://x", "content_type": content_type, "sha256": digest, **size}


def problem(status: int, title: str, **changes: Any) -> dict[str, Any]:
    """A problem document."""
    base = {"type": "t", "title": title, "status": status, "detail": "why", "error": "why"}
    return {**base, **changes}


@pytest.fixture
def service() -> Iterator[Service]:
    """A running service."""
    service = Service()
    yield service
    service.close()


# A shell that starts tests in the background has them ignore Ctrl-C; the command must not.
MAIN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from darkroom.cli import main
main()
"""


def command(url: str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command line in a folder."""
    environment = {**os.environ, "DARKROOM_URL": url}
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(url: str, folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run the command line to its end: exit status, stdout, stderr."""
    process = command(url, folder, *arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def latents(folder: Path, names: Sequence[str]) -> list[str]:
    """Write files of latents."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        np.save(folder / name, np.zeros((1, 4, 8, 8), np.float16))
    return list(names)


def test_submit_prints_ids(service: Service, tmp_path: Path) -> None:
    """Without --wait, each file is a job and the ids are printed beside the files."""
    files = latents(tmp_path, ["a.npy", "b.npy"])
    status, out, err = run(service.url, tmp_path, "submit", *files, "--vae", "demo")
    assert (status, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert [line[1] for line in lines] == files
    assert {line[0] for line in lines} == {"job-0", "job-1"}


def test_submit_and_wait_saves_pictures(service: Service, tmp_path: Path) -> None:
    """With --wait pictures are saved after their files, and stdout says where; no bar in a pipe."""
    files = latents(tmp_path, ["a.npy", "x/a.npy"])
    arguments = ["--vae", "demo", "--wait", "-o", "out/deep"]
    status, out, err = run(service.url, tmp_path, "submit", *files, *arguments)
    assert (status, err) == (0, "")
    saved = sorted((tmp_path / "out/deep").iterdir())
    assert [path.name for path in saved] == ["a.png", "a_2.png"]
    assert [path.read_bytes() for path in saved] == PICTURES["one"] * 2
    assert sorted(line.split()[1] for line in out.splitlines()) == [
        "out/deep/a.png",
        "out/deep/a_2.png",
    ]


def test_several_pictures_are_numbered(service: Service, tmp_path: Path) -> None:
    """A batch of pictures becomes STEM-0, STEM-1 and so on; with --json stdout is JSON alone."""
    files = latents(tmp_path, ["a.npy"])
    options = ["--vae", "demo", "--wait", "--json", "--metadata", '{"becomes": "two"}']
    status, out, err = run(service.url, tmp_path, "submit", *files, *options)
    assert status == 0
    assert (tmp_path / "a-0.png").read_bytes() == b"first"
    assert (tmp_path / "a-1.png").read_bytes() == b"second"
    (document,) = json.loads(out)
    assert document["status"] == "succeeded"
    assert "wrote a-0.png" in err


def test_pictures_are_encoded(service: Service, tmp_path: Path) -> None:
    """With --task encode pictures are submitted; without it they are refused, and it is named."""
    (tmp_path / "a.png").write_bytes(PNG)
    options = ["--vae", "demo", "--task", "encode", "--metadata", '{"becomes": "latents"}']
    status, out, err = run(service.url, tmp_path, "submit", "a.png", *options, "--wait")
    assert (status, err) == (0, "")
    assert out.startswith("wrote a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == PICTURES["latents"][0]
    status, _, err = run(service.url, tmp_path, "submit", "a.png", "--vae", "demo")
    assert status == 2
    assert "task=encode" in err


def test_frames_are_saved_as_an_archive(service: Service, tmp_path: Path) -> None:
    """The frames of a video as pictures are one archive."""
    files = latents(tmp_path, ["a.npy"])
    options = ["--vae", "demo", "--wait", "--metadata", '{"becomes": "frames"}']
    assert run(service.url, tmp_path, "submit", *files, *options)[0] == 0
    assert (tmp_path / "a.zip").read_bytes() == PICTURES["frames"][0]


def test_failed_job(service: Service, tmp_path: Path) -> None:
    """A job that fails is exit status 1, and its reason is told."""
    files = latents(tmp_path, ["a.npy"])
    options = ["--vae", "demo", "--wait", "--metadata", '{"becomes": "fail"}']
    status, out, err = run(service.url, tmp_path, "submit", *files, *options)
    assert (status, out) == (1, "")
    assert err == "darkroom: a: job job-0 failed: out of memory\n"
    status, out, _ = run(service.url, tmp_path, "status", "job-0", "--json")
    assert status == 1
    assert json.loads(out)[0]["error"]["detail"] == "out of memory"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["submit", "missing.npy", "--vae", "demo"], "missing.npy: cannot be read"),
        (["submit", "missing", "--vae", "demo"], "missing: there is no such file"),
        (["submit", "a.npy", "--vae", "demo", "--quality", "0"], "quality"),
        (["submit", "a.npy", "--vae", "unknown"], "darkroom vaes lists the names"),
        (["submit", "a.npy"], "--vae"),
        (["status", "nobody"], "nobody: 404"),
        (["unheard-of"], "unheard-of"),
    ],
)
def test_usage(service: Service, tmp_path: Path, arguments: list[str], told: str) -> None:
    """What the caller got wrong is exit status 2, says what it is, and prints nothing else."""
    latents(tmp_path, ["a.npy"])
    status, _, err = run(service.url, tmp_path, *arguments)
    assert status == 2
    assert told in err
    assert "Traceback" not in err
    assert service.jobs == {}


def test_one_bad_file_keeps_others_from_nothing(service: Service, tmp_path: Path) -> None:
    """A file that cannot be sent is told by name; the others are submitted all the same."""
    files = latents(tmp_path, ["a.npy", "b.npy"])
    np.save(tmp_path / "a.npy", np.zeros(4, np.int64))
    status, out, err = run(service.url, tmp_path, "submit", *files, "--vae", "demo")
    assert status == 2
    assert "a.npy" in err
    assert "int64" in err
    assert out.split() == ["job-0", "b.npy"]


def test_unreachable(tmp_path: Path) -> None:
    """A service that is not there is exit status 3, in one line that says what to do."""
    status, out, err = run("http://127.0.0.1:1", tmp_path, "vaes")
    assert (status, out) == (3, "")
    assert len(err.splitlines()) == 1
    assert "http://127.0.0.1:1" in err
    assert "DARKROOM_URL" in err


def test_bad_setting(tmp_path: Path) -> None:
    """An address that is none is exit status 2, with the variable's name."""
    status, _, err = run("nonsense", tmp_path, "vaes")
    assert status == 2
    assert "DARKROOM_URL: 'nonsense'" in err


def test_jobs(service: Service, tmp_path: Path) -> None:
    """Jobs are listed, shown, canceled and deleted; ids stay whole in tables."""
    files = latents(tmp_path, ["a.npy", "b.npy"])
    run(service.url, tmp_path, "submit", *files, "--vae", "demo")
    _, out, _ = run(service.url, tmp_path, "list")
    assert [line.split()[0] for line in out.splitlines()] == ["ID", "job-0", "job-1"]
    _, out, _ = run(service.url, tmp_path, "list", "--json", "--limit", "1")
    assert [document["id"] for document in json.loads(out)] == ["job-0"]
    assert run(service.url, tmp_path, "cancel", "job-0") == (0, "job-0 canceled\n", "")
    assert run(service.url, tmp_path, "delete", "job-0") == (0, "job-0 deleted\n", "")
    status, out, err = run(service.url, tmp_path, "status", "job-0", "job-1", "--json")
    assert status == 2
    assert [document["id"] for document in json.loads(out)] == ["job-1"]
    assert err.startswith("darkroom: job-0: 404")


def test_vaes(service: Service, tmp_path: Path) -> None:
    """The catalogue is a table, or the service's own documents."""
    _, out, _ = run(service.url, tmp_path, "vaes")
    assert out.splitlines()[1].split()[:2] == ["demo", "sd"]
    _, out, _ = run(service.url, tmp_path, "vaes", "--json")
    assert json.loads(out)[0]["name"] == "demo"


def test_interrupt_names_the_jobs(service: Service, tmp_path: Path) -> None:
    """Ctrl-C ends the command with 130 at once and tells which jobs go on."""
    files = latents(tmp_path, ["a.npy", "b.npy"])
    options = ["--vae", "demo", "--wait", "--metadata", '{"becomes": "hang"}']
    process = command(service.url, tmp_path, "submit", *files, *options)
    assert service.waited_for.wait(60)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(err.splitlines()) == 1
    assert "job-0" in err
    assert "job-1" in err
