"""An installation under measurement: the embedded servers, APIs and workers on loopback."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from darkroom_infra.embedded.ports import free_ports
from darkroom_infra.embedded.stack import Stack, prepare
from darkroom_infra.embedded.supervisor import Supervisor
from darkroom_infra.settings import Settings
from darkroom_infra.telemetry import configure_logging


@dataclass(frozen=True)
class Installation:
    """Servers that run, and what runs on them."""

    stack: Stack
    supervisor: Supervisor

    def site(self, number: int, **settings: str) -> Site:
        """Set up the number-th of several sites: a Redis database and a bucket of its own."""
        (port,) = free_ports(1)
        own = Settings(
            redis_url=self.stack.redis_url.removesuffix("/0") + f"/{number}",
            s3_endpoint_url=self.stack.s3_url,
        )
        stack = replace(
            self.stack, ports=replace(self.stack.ports, api=port), settings=own, workers=0
        )
        keys = self.stack.credentials
        environment = {
            "DARKROOM_S3_ACCESS_KEY_ID": keys.access_key_id,
            "DARKROOM_S3_SECRET_ACCESS_KEY": keys.secret_access_key,
            "DARKROOM_S3_BUCKET": f"bench-{number}",
            **{f"DARKROOM_{name.upper()}": value for name, value in settings.items()},
        }
        return Site(number, stack, self.supervisor, environment)


@dataclass(frozen=True)
class Site:
    """An API and workers with their settings."""

    number: int
    stack: Stack
    supervisor: Supervisor
    own: Mapping[str, str]

    @property
    def url(self) -> str:
        """The API's address."""
        return self.stack.api_url

    @property
    def environment(self) -> Mapping[str, str]:
        """The settings of its programs."""
        return {**self.stack.environment, **self.own}

    def start_api(self) -> None:
        """Start the API, and wait until it is ready."""
        program = self.stack.api()
        named = replace(program, name=f"api-{self.number}", environment=self.environment)
        self.supervisor.start(named)

    def start_worker(self, **settings: str) -> None:
        """Start a worker, and wait until it has announced itself."""
        program = self.stack.worker(1)
        settings = {f"DARKROOM_{name.upper()}": value for name, value in settings.items()}
        environment = {**program.environment, **self.environment, **settings}
        name = f"worker-of-{self.number}"
        self.supervisor.start(replace(program, name=name, environment=environment))

    def cpu_seconds(self) -> dict[str, float]:
        """Read the CPU time that each part has used so far, by its name."""
        used = {"this client": _seconds(psutil.Process())}
        for child in psutil.Process().children(recursive=True):
            used[_name(child)] = used.get(_name(child), 0.0) + _seconds(child)
        return used


@contextmanager
def installed() -> Iterator[Installation]:
    """Start Valkey and SeaweedFS in a temporary folder, and stop everything in the end."""
    configure_logging("bench")
    with tempfile.TemporaryDirectory(prefix="darkroom-bench-") as name:
        folder = Path(name)
        stack = prepare(folder / "data", None, 0, Settings())
        supervisor = Supervisor(folder)
        try:
            supervisor.start(*stack.servers())
            yield Installation(stack, supervisor)
        finally:
            supervisor.stop()


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _name(process: psutil.Process) -> str:
    words = " ".join(process.cmdline()[:4])
    for part, name in (("valkey", "Valkey"), ("weed", "SeaweedFS"), ("darkroom api", "API")):
        if part in words:
            return name
    return "others"
