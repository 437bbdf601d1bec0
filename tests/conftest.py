"""Real parts for the tests: Valkey, SeaweedFS, the API and workers as processes of their own.

The servers start once for a test run. `Deployment` puts an API and workers on them, with a Redis
database and a bucket of its own.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from darkroom_infra.embedded.ports import free_ports
from darkroom_infra.embedded.stack import Stack, prepare
from darkroom_infra.embedded.supervisor import Supervisor
from darkroom_infra.ledger import Ledger
from darkroom_infra.records import RecordsClient
from darkroom_infra.settings import Settings
from darkroom_infra.store import ObjectStore, StoreConfig
from darkroom_wire.tensors import from_raw, to_safetensors

T = TypeVar("T")
START_SECONDS = 60.0
_names = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let tests that measure write their figures into the documents."""
    parser.addoption("--write-docs", action="store_true", help="write figures into docs/")


def eventually(read: Callable[[], T], seconds: float = 30.0) -> T:
    """Read again and again until what is read is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (value := read()):
        if time.monotonic() > deadline:
            pytest.fail(f"still {value!r} after {seconds} s")
        time.sleep(0.02)
    return value


def make_latents(*shape: int, seed: int = 0, dtype: str = "float32") -> bytes:
    """Make a safetensors file with one tensor of normally distributed latents."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return to_safetensors([from_raw(values.tobytes(), shape, dtype)])


@dataclass
class Servers:
    """Valkey and SeaweedFS, shared by a test run."""

    stack: Stack
    databases: list[int] = field(default_factory=lambda: list(range(1, 16)))

    @contextmanager
    def deploy(self, tmp_path: Path, **settings: str) -> Iterator[Deployment]:
        """Set up an installation of its own; it starts no process by itself."""
        number = next(_names)
        database = self.databases.pop()
        redis_url = self.stack.redis_url.removesuffix("/0") + f"/{database}"
        environment = {
            **self.stack.environment,
            "DARKROOM_REDIS_URL": settings.pop("redis_url", redis_url),
            "DARKROOM_S3_BUCKET": f"test-{os.getpid()}-{number}",
            **{f"DARKROOM_{name.upper()}": value for name, value in settings.items()},
        }
        deployment = Deployment(environment, tmp_path)
        deployment.flush()
        try:
            yield deployment
        finally:
            deployment.close()
            self.databases.append(database)


@dataclass
class Deployment:
    """One installation of Darkroom: settings, and the processes that run with them."""

    environment: Mapping[str, str]
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    api_url: str = ""

    def start_api(self) -> str:
        """Start an API, wait until it is ready, and return its address."""
        (port,) = free_ports(1)
        process = self._spawn("api", "--port", str(port))
        self.api_url = f"http://127.0.0.1:{port}"
        self.await_ready(process)
        return self.api_url

    def await_ready(self, process: subprocess.Popen[bytes] | None = None) -> None:
        """Wait until the API says that everything answers."""

        def ready() -> bool:
            if process is not None and process.poll() is not None:
                pytest.fail(self.logs())
            try:
                return httpx.get(f"{self.api_url}/readyz", timeout=5).status_code == 200
            except httpx.HTTPError:
                return False

        eventually(ready, START_SECONDS)

    def start_worker(self, **settings: str) -> subprocess.Popen[bytes]:
        """Start a worker, and wait until it has announced itself."""
        before = self._workers()
        process = self._spawn("worker", **settings)
        eventually(lambda: process.poll() is not None or self._workers() > before, START_SECONDS)
        assert process.poll() is None, self.logs()
        return process

    def start_courier(self) -> subprocess.Popen[bytes]:
        """Start a courier of webhooks, and wait until it can be rung for."""
        from darkroom_infra.records import transitions

        process = self._spawn("webhooks")
        alive = transitions.courier_alive()
        eventually(lambda: process.poll() is not None or self.records().run(alive), START_SECONDS)
        assert process.poll() is None, self.logs()
        return process

    def records(self) -> RecordsClient:
        """Open the job records."""
        return RecordsClient(self.environment["DARKROOM_REDIS_URL"])

    def ledger(self) -> Ledger:
        """Open the ledger."""
        return Ledger(ObjectStore(self._store_config()))

    def client(self, **arguments: Any) -> httpx.Client:
        """Open an HTTP client on the API."""
        return httpx.Client(base_url=self.api_url, timeout=70, **arguments)

    def flush(self) -> None:
        """Empty this installation's Redis database."""
        import redis

        with redis.Redis.from_url(self.environment["DARKROOM_REDIS_URL"]) as connection:
            connection.flushdb()

    def logs(self) -> str:
        """Read what the processes said."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        """Stop every process."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._drop_bucket()

    def _drop_bucket(self) -> None:
        """Delete the bucket with all in it: SeaweedFS holds volumes for each, and has few."""
        store = ObjectStore(self._store_config())
        # Not made yet, or the store is away by the test's own doing.
        with suppress(ClientError, BotoCoreError):
            store._s3.delete_bucket(Bucket=store.bucket)

    def _workers(self) -> int:
        from darkroom_infra.records import transitions

        return self.records().run(transitions.statistics()).workers

    def _spawn(self, *command: str, **settings: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            **self.environment,
            **{f"DARKROOM_{name.upper()}": value for name, value in settings.items()},
        }
        with (self.folder / f"{command[0]}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "darkroom", *command],
                env=environment,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        self.processes.append(process)
        return process

    def _store_config(self) -> StoreConfig:
        get = self.environment.__getitem__
        return StoreConfig(
            bucket=get("DARKROOM_S3_BUCKET"),
            region="us-east-1",
            endpoint_url=get("DARKROOM_S3_ENDPOINT_URL"),
            access_key_id=get("DARKROOM_S3_ACCESS_KEY_ID"),
            secret_access_key=get("DARKROOM_S3_SECRET_ACCESS_KEY"),
        )


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Valkey and SeaweedFS."""
    data = tmp_path_factory.mktemp("servers")
    stack = prepare(data, None, 0, Settings())
    supervisor = Supervisor(data)
    try:
        supervisor.start(stack.valkey(), stack.seaweedfs())
        yield Servers(stack)
    finally:
        supervisor.stop()


@pytest.fixture(scope="session")
def installation(
    servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """An API and a worker with the demo VAE, for tests that do no harm to them."""
    with servers.deploy(tmp_path_factory.mktemp("installation")) as deployment:
        deployment.start_api()
        deployment.start_worker()
        yield deployment


@pytest.fixture(scope="session")
def intake(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An API without a worker: what it accepts stays queued."""
    with servers.deploy(
        tmp_path_factory.mktemp("intake"), max_latents_bytes="1000000", max_pixels="4194304"
    ) as deployment:
        deployment.start_api()
        yield deployment
