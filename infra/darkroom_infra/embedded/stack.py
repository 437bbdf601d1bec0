"""The parts of the embedded stack, and what each needs to run."""

from __future__ import annotations

import base64
import fcntl
import json
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import redis

from darkroom_infra.records import RecordsClient, RecordsUnavailableError, transitions
from darkroom_infra.settings import PREFIX, Settings

from . import binaries
from .ports import HOST, choose_port, free_ports, is_free
from .supervisor import Program

SEAWEED_PORTS = 9
DEFAULT_API_PORT = 8000
LOCK_FILE = "lock"
ADDRESSES_FILE = "addresses.json"
PORTS_FILE = "ports.json"


class StackError(Exception):
    """The stack cannot be set up here."""


@dataclass(frozen=True)
class Ports:
    """The ports of one stack. SeaweedFS wants one for each of its servers, HTTP and gRPC."""

    api: int
    redis: int
    s3: int
    seaweed: tuple[int, ...]


@dataclass(frozen=True)
class Credentials:
    """The key with which the stack's own store is entered."""

    access_key_id: str
    secret_access_key: str


@dataclass(frozen=True)
class Stack:
    """Where the stack keeps its data and where its parts listen."""

    data: Path
    ports: Ports
    credentials: Credentials
    own_webhook_secret: str
    settings: Settings
    workers: int

    @property
    def api_url(self) -> str:
        """The API's address."""
        return f"http://{HOST}:{self.ports.api}"

    @property
    def redis_url(self) -> str:
        """Valkey's address, or the configured one."""
        return (
            self.settings.redis_url if self._has_redis else f"redis://{HOST}:{self.ports.redis}/0"
        )

    @property
    def s3_url(self) -> str:
        """The store's address, or the configured one."""
        return self.settings.s3_endpoint_url or f"http://{HOST}:{self.ports.s3}"

    @property
    def webhook_secret(self) -> str:
        """What signs callbacks: the configured secret, or the stack's own."""
        configured = self.settings.webhook_secret
        return configured.get_secret_value() if configured else self.own_webhook_secret

    @property
    def _has_redis(self) -> bool:
        return "redis_url" in self.settings.model_fields_set

    @property
    def _has_s3(self) -> bool:
        return self.settings.s3_endpoint_url is not None

    @property
    def environment(self) -> Mapping[str, str]:
        """The settings with which API and workers find the other parts."""
        values = {
            "URL": self.api_url,
            "REDIS_URL": self.redis_url,
            "S3_ENDPOINT_URL": self.s3_url,
            "WEBHOOK_ALLOW": ",".join(self.settings.webhook_allow) or "127.0.0.0/8,::1/128",
            "WEBHOOK_SECRET": self.webhook_secret,
        }
        if not self._has_s3:
            values["S3_ACCESS_KEY_ID"] = self.credentials.access_key_id
            values["S3_SECRET_ACCESS_KEY"] = self.credentials.secret_access_key
        return {PREFIX + name: value for name, value in values.items()}

    def servers(self) -> list[Program]:
        """The servers to run here: those that the settings do not name.

        Raises:
            MissingBinaryError: a server has no program for this platform.
        """
        return [
            *([] if self._has_redis else [self.valkey()]),
            *([] if self._has_s3 else [self.seaweedfs()]),
        ]

    def valkey(self) -> Program:
        """Valkey, with every write on disk before it is answered."""
        folder = self.data / "valkey"
        folder.mkdir(parents=True, exist_ok=True)
        options = {
            "port": self.ports.redis,
            "bind": HOST,
            "dir": folder,
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        command = [str(binaries.valkey_server())]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        return Program("valkey", command, {}, partial(_redis_answers, self.redis_url))

    def seaweedfs(self) -> Program:
        """SeaweedFS: master, volume server, filer and S3 gateway in one process."""
        folder = self.data / "seaweedfs"
        folder.mkdir(parents=True, exist_ok=True)
        names = (
            *("master.port", "master.port.grpc", "volume.port", "volume.port.grpc"),
            *("filer.port", "filer.port.grpc", "s3.port.grpc", "s3.port.iceberg", "s3.port.lance"),
        )
        command = [
            str(binaries.weed()),
            "server",
            f"-dir={folder}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            # Free space is given out in volumes, several at once: large ones would soon be all.
            "-master.volumeSizeLimitMB=128",
            "-volume.max=0",
            "-volume.preStopSeconds=0",
            # Alone, a master need not wait long before it elects itself.
            "-master.electionTimeout=1s",
            "-master.telemetry=false",
            "-s3",
            f"-s3.port={self.ports.s3}",
            f"-s3.config={self._write_identities()}",
            *(f"-{name}={port}" for name, port in zip(names, self.ports.seaweed, strict=True)),
        ]
        # Its filer would wait 15 s for subscribers of its own. Ending it outright loses nothing:
        # what it has answered was written to files.
        ready = partial(_http_answers, self.s3_url)
        return Program("seaweedfs", command, {}, ready, start_seconds=90.0, stop_seconds=1.0)

    def api(self) -> Program:
        """The HTTP service."""
        command = [*_darkroom("api"), "--host", HOST, "--port", str(self.ports.api)]
        ready = partial(_is_ready, self.api_url)
        return Program("api", command, self.environment, ready, 90.0, 4.0)

    def worker(self, number: int) -> Program:
        """One decode worker; it is ready once as many have announced themselves."""
        stop_seconds = 1.0 + self._drain_seconds
        environment = {**self.environment, PREFIX + "DRAIN_SECONDS": str(self._drain_seconds)}
        name = f"worker-{number}"
        ready = partial(_workers_announced, self.redis_url, number)
        return Program(name, _darkroom("worker"), environment, ready, 120.0, stop_seconds)

    def webhooks(self) -> Program:
        """The courier of webhooks; it is ready once it can be rung for."""
        ready = partial(_courier_lives, self.redis_url)
        return Program("webhooks", _darkroom("webhooks"), self.environment, ready, 60.0, 4.0)

    @property
    def _drain_seconds(self) -> float:
        # All parts together have to stop within 15 s.
        return min(self.settings.drain_seconds, 5.0)

    def _write_identities(self) -> Path:
        path = self.data / "s3-identities.json"
        keys = self.credentials
        identity = {
            "name": "darkroom",
            "credentials": [{"accessKey": keys.access_key_id, "secretKey": keys.secret_access_key}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        _write_private(path, json.dumps({"identities": [identity]}))
        return path


def prepare(data: Path, port: int | None, workers: int, settings: Settings) -> Stack:
    """Choose ports and keys, the same as the last time where that is possible.

    Raises:
        StackError: the given port is taken.
    """
    if port is not None and not is_free(port):
        raise StackError(f"port {port} is taken: choose another with --port")
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    ports = _choose_ports(data, port if port is not None else choose_port(DEFAULT_API_PORT))
    _write_private(data / PORTS_FILE, json.dumps(asdict(ports)))
    return Stack(data, ports, _credentials(data), _webhook_secret(data), settings, workers)


@contextmanager
def locked(data: Path) -> Iterator[None]:
    """Hold a data folder for one stack.

    Raises:
        StackError: another stack runs on it, or it cannot be written.
    """
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (data / LOCK_FILE).open("w")
    except OSError as error:
        raise StackError(f"the data folder {data} cannot be used: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StackError(f"another stack runs on {data}: stop it, or give --data") from error
        yield


def _choose_ports(data: Path, api: int) -> Ports:
    """Keep the ports of the last run, so that links that were handed out stay valid."""
    try:
        known = json.loads((data / PORTS_FILE).read_text())
        ports = [known["redis"], known["s3"], *known["seaweed"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        ports = []
    if len(ports) != 2 + SEAWEED_PORTS or not all(map(is_free, ports)):
        ports = free_ports(2 + SEAWEED_PORTS)
    return Ports(api=api, redis=ports[0], s3=ports[1], seaweed=tuple(ports[2:]))


def _credentials(data: Path) -> Credentials:
    path = data / "s3-credentials.json"
    if path.exists():
        return Credentials(**json.loads(path.read_text()))
    fresh = Credentials(secrets.token_hex(10), secrets.token_urlsafe(30))
    _write_private(path, json.dumps(asdict(fresh)))
    return fresh


def _webhook_secret(data: Path) -> str:
    path = data / "webhook-secret"
    if not path.exists():
        _write_private(path, "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode())
    return path.read_text()


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _darkroom(command: str) -> list[str]:
    return [sys.executable, "-m", "darkroom", command]


def _redis_answers(url: str) -> bool:
    client = redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def _workers_announced(redis_url: str, count: int) -> bool:
    records = RecordsClient(redis_url)
    try:
        return records.run(transitions.statistics()).workers >= count
    except RecordsUnavailableError:
        return False
    finally:
        records.close()


def _courier_lives(redis_url: str) -> bool:
    records = RecordsClient(redis_url)
    try:
        return records.run(transitions.courier_alive())
    except RecordsUnavailableError:
        return False
    finally:
        records.close()


def _http_answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 - our own loopback address
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False
    return True


def _is_ready(api_url: str) -> bool:
    try:
        urllib.request.urlopen(f"{api_url}/readyz", timeout=5).close()  # noqa: S310
    except OSError:
        return False
    return True
