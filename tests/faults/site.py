"""One installation of Darkroom that may be harmed, and what is needed to watch it."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx
import redis

from darkroom_infra.ledger import Ledger
from darkroom_infra.records import RecordsClient, transitions
from darkroom_infra.records.client import CHANNEL, PREFIX
from darkroom_infra.store import ObjectStore, StoreConfig
from tests.conftest import eventually
from tests.faults.ports import take_port
from tests.faults.processes import Service
from tests.faults.proxy import REDIS, Proxy
from tests.faults.servers import Valkey

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Store:
    """An S3 store: where it is, and its key."""

    url: str
    access_key_id: str
    secret_access_key: str

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.url.rpartition(":")[2])


@dataclass
class Lab:
    """Where installations are set up: a store that they share, and a folder for their logs."""

    store: Store
    folder: Path

    @contextmanager
    def site(self, *, apis: int = 1, workers: int = 2, **settings: str) -> Iterator[Site]:
        """Set up an installation with a Valkey and a bucket of its own, and start it."""
        folder = self.folder / f"site-{next(_numbers)}"
        folder.mkdir()
        with ExitStack() as stack:
            valkey = Valkey(folder / "valkey")
            stack.callback(valkey.close)
            valkey.start()
            site = Site(folder, self.store, valkey, settings)
            stack.callback(site.close)
            for _ in range(apis):
                site.add_api()
            for _ in range(workers):
                site.add_worker()
            site.await_ready()
            yield site


class Site:
    """An installation. API and workers reach Redis and S3 over lines that can be disturbed."""

    def __init__(
        self, folder: Path, store: Store, valkey: Valkey, settings: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self.store = store
        self.valkey = valkey
        self.redis_line = Proxy(valkey.port, REDIS)
        self.s3_line = Proxy(store.port)
        self.apis: list[Service] = []
        self.workers: list[Service] = []
        self.couriers: list[Service] = []
        self.known: set[str] = set()
        """Jobs that were judged already."""
        self.max_attempts = int(settings.get("max_attempts", "3"))
        self.lease = float(settings.get("lease_seconds", "2"))
        self.environment = {
            "DARKROOM_REDIS_URL": f"redis://127.0.0.1:{self.redis_line.port}/0",
            "DARKROOM_S3_ENDPOINT_URL": self.s3_line.url,
            "DARKROOM_S3_BUCKET": f"faults-{os.getpid()}-{folder.name}",
            "DARKROOM_S3_ACCESS_KEY_ID": store.access_key_id,
            "DARKROOM_S3_SECRET_ACCESS_KEY": store.secret_access_key,
            "DARKROOM_LEASE_SECONDS": "2",
            "DARKROOM_DRAIN_SECONDS": "1",
            **{f"DARKROOM_{name.upper()}": value for name, value in settings.items()},
        }
        self.records = RecordsClient(valkey.url)
        self.ledger = self._open_ledger()

    @property
    def services(self) -> list[Service]:
        """All programs of Darkroom."""
        return [*self.apis, *self.workers, *self.couriers]

    def add_api(self, **settings: str) -> Service:
        """Start one more API; it keeps its port over all its lives."""
        port = take_port()
        service = self._add("api", ["api", "--port", str(port)], settings)
        self.apis.append(service)
        return service

    def add_worker(self, **settings: str) -> Service:
        """Start one more worker."""
        service = self._add("worker", ["worker"], settings)
        self.workers.append(service)
        return service

    def add_courier(self) -> Service:
        """Start one more courier of webhooks."""
        service = self._add("webhooks", ["webhooks"], {})
        self.couriers.append(service)
        return service

    def urls(self) -> list[str]:
        """The addresses of the APIs."""
        return [f"http://127.0.0.1:{api.arguments[-1]}" for api in self.apis]

    def await_ready(self) -> None:
        """Wait until every API says that everything answers, and all workers are there."""
        for url in self.urls():
            eventually(lambda url=url: _is_ready(url), 60)  # type: ignore[misc]
        eventually(lambda: self.statistics().workers >= len(self.workers), 60)

    def statistics(self) -> transitions.Statistics:
        """Read what waits and who works, past the lines."""
        return self.records.run(transitions.statistics())

    def at_rest(self) -> bool:
        """Whether no job waits or runs."""
        statistics = self.statistics()
        return not sum(statistics.depth.values()) and not statistics.running

    def close(self) -> None:
        """End everything."""
        for service in self.services:
            service.close()
        self.records.close()
        self.ledger.store.close()
        self.redis_line.close()
        self.s3_line.close()

    def _add(self, kind: str, arguments: list[str], settings: Mapping[str, str]) -> Service:
        count = sum(service.arguments[0] == kind for service in self.services)
        service = Service(f"{kind}-{count}", arguments, self.environment, self.folder)
        service.start(**settings)
        return service

    def _open_ledger(self) -> Ledger:
        config = StoreConfig(
            bucket=self.environment["DARKROOM_S3_BUCKET"],
            region="us-east-1",
            endpoint_url=self.store.url,
            access_key_id=self.store.access_key_id,
            secret_access_key=self.store.secret_access_key,
        )
        return Ledger(ObjectStore(config))


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@dataclass
class Change:
    """A job's new state, and when it was announced."""

    moment: float
    job: str
    state: str


@dataclass
class Listener:
    """Follows the changes that Redis announces; after a loss of the connection it goes on."""

    url: str
    changes: list[Change] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _stands: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        assert self._stands.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except redis.RedisError:
                self._stop.wait(0.02)

    def _follow(self) -> None:
        with redis.Redis.from_url(self.url, decode_responses=True, retry=None) as connection:
            subscription = connection.pubsub()
            subscription.subscribe(PREFIX + CHANNEL)
            while not self._stop.is_set():
                message = subscription.get_message(timeout=0.2)
                if message is None:
                    continue
                self._stands.set()
                if message["type"] == "message":
                    job, _, state = message["data"].partition(" ")
                    self.changes.append(Change(time.monotonic(), job, state))
