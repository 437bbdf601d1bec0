"""Programs under a supervisor that starts them again, and the ways to end or to hold them up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.conftest import eventually
from tests.faults import nursery

START_SECONDS = 60.0
STOP_SECONDS = 20.0
KILLED = -signal.SIGKILL


@dataclass
class Life:
    """One process of a service, from its start to its end.

    `settings` were its own; `status` says how it ended, negative for a signal.
    """

    process: BaseProcess
    log: Path
    settings: Mapping[str, str]
    started: float
    ended: float | None = None
    status: int | None = None
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process.pid is not None
        return self.process.pid

    def said(self, action: str | None = None) -> list[dict[str, Any]]:
        """Read what it has logged, or only lines of one action."""
        return [line for line in self._lines() if action in (None, line.get("action"))]

    def _lines(self) -> Iterator[dict[str, Any]]:
        for text in self.log.read_text(errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue  # a traceback, or a line that was cut by a kill
            if isinstance(line, dict):
                yield line


@dataclass(eq=False)
class Service:
    """`darkroom ARGUMENTS…`, started again whenever it ends, until it is closed.

    Each life has the service's environment and, once, the settings that were asked for.
    """

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    lives: list[Life] = field(default_factory=list)
    _next: deque[Mapping[str, str]] = field(default_factory=deque)
    _wanted: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _supervisor: threading.Thread | None = None

    @property
    def life(self) -> Life:
        """The present life, or the last one."""
        return self.lives[-1]

    @property
    def prepared(self) -> int:
        """How many lives are still to come that have settings of their own."""
        return len(self._next)

    @property
    def alive(self) -> bool:
        """Whether a process runs now."""
        return bool(self.lives) and self.life.status is None

    def start(self, **settings: str) -> None:
        """Start it; `settings` hold for the first life only."""
        self.prepare(**settings)
        self._wanted.set()
        self._spawn()
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)
        self._supervisor.start()

    def run(self) -> Life:
        """Run it once to its end."""
        self._spawn()
        self.life.status = nursery.await_end(self.life.process)
        return self.life

    def prepare(self, **settings: str) -> None:
        """Give the next life that has none yet settings of its own."""
        self._next.append({f"DARKROOM_{name.upper()}": value for name, value in settings.items()})

    def kill(self) -> float:
        """Kill -9, and return when."""
        return self.signal(signal.SIGKILL)

    def replace(self, **settings: str) -> Life:
        """Kill it, and wait for its next life, which has these settings."""
        life = self.life
        self.prepare(**settings)
        self.kill()
        return self.next_life(life)

    def signal(self, number: signal.Signals) -> float:
        """Send a signal, and return when; a process that has just ended gets none."""
        with self._lock:
            moment = time.monotonic()
            if self.life.status is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.life.pid, number)
        return moment

    def stop(self) -> None:
        """Stop it for good, in order, and wait for its end; what holds out is killed."""
        self._wanted.clear()
        if not self.lives:
            return
        life = self.life
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        if not life.over.wait(STOP_SECONDS):
            self.signal(signal.SIGKILL)
        if self._supervisor is not None:
            self._supervisor.join()

    def close(self) -> None:
        """End it for good, outright."""
        self._wanted.clear()
        if self.lives:
            self.signal(signal.SIGKILL)
        if self._supervisor is not None:
            self._supervisor.join()

    def next_life(self, after: Life, seconds: float = START_SECONDS) -> Life:
        """Wait until another process runs than that one."""
        eventually(lambda: self.life is not after and self.alive, seconds)
        return self.life

    def said(self, action: str | None = None) -> list[dict[str, Any]]:
        """Read what all its lives have logged."""
        return [line for life in self.lives for line in life.said(action)]

    def _spawn(self) -> None:
        settings = self._next.popleft() if self._next else {}
        log = self.folder / f"{self.name}-{len(self.lives)}.log"
        log.touch()
        process = nursery.spawn(self.arguments, {**self.environment, **settings}, self.folder, log)
        self.lives.append(Life(process, log, settings, time.monotonic()))

    def _supervise(self) -> None:
        while True:
            life = self.life
            status = nursery.await_end(life.process)
            with self._lock:
                life.status, life.ended = status, time.monotonic()
                life.over.set()
                if not self._wanted.is_set():
                    return
                self._spawn()
