"""Keeps programs running: started in order, started again when they die, stopped in order."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from darkroom_infra.telemetry import get_logger

READY_POLL = 0.1
WATCH_POLL = 0.2
FIRST_BACKOFF = 0.5
LONGEST_BACKOFF = 10.0
LONG_LIFE = 30.0
"""A program that lived so many seconds is started again without growing backoff."""

TAIL_LINES = 12

_log = get_logger("up")


class StartError(Exception):
    """A program that cannot start. The text says why, with the end of its log."""


@dataclass(frozen=True)
class Program:
    """What to run, how to see that it is ready, and how long it may take to start and to stop."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    ready: Callable[[], bool]
    start_seconds: float = 60.0
    stop_seconds: float = 3.0


@dataclass
class _Child:
    program: Program
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    backoff: float = FIRST_BACKOFF
    restart_at: float | None = None


class Supervisor:
    """Runs programs until it is told to stop."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: list[_Child] = []
        self._stop = threading.Event()

    def request_stop(self) -> None:
        """Have `start` and `watch` return soon; safe in a signal handler."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for."""
        return self._stop.is_set()

    def start(self, *programs: Program) -> None:
        """Start programs together, and return once all are ready, or a stop was asked for.

        Raises:
            StartError: one ended, or was not ready in time.
        """
        children = [_Child(program, self._logs / f"{program.name}.log") for program in programs]
        for child in children:
            if self._stop.is_set():
                return
            self._children.append(child)
            _spawn(child)
        for child in children:
            self._await_ready(child)

    def watch(self) -> None:
        """Start again what dies, until a stop is asked for."""
        while not self._stop.wait(WATCH_POLL):
            for child in self._children:
                self._revive(child)

    def stop(self) -> None:
        """Stop everything, the last started first; what does not stop in time is killed."""
        self._stop.set()
        for name in dict.fromkeys(_group(child) for child in reversed(self._children)):
            _end([child for child in self._children if _group(child) == name])

    def _await_ready(self, child: _Child) -> None:
        deadline = time.monotonic() + child.program.start_seconds
        while not self._stop.is_set():
            assert child.process is not None  # noqa: S101 - it was just started
            if (status := child.process.poll()) is not None:
                raise StartError(_explain(child, f"ended with status {status}"))
            if child.program.ready():
                return
            if time.monotonic() > deadline:
                seconds = child.program.start_seconds
                raise StartError(_explain(child, f"was not ready after {seconds:.0f} s"))
            self._stop.wait(READY_POLL)

    def _revive(self, child: _Child) -> None:
        now = time.monotonic()
        if child.restart_at is not None:
            if now >= child.restart_at:
                child.restart_at = None
                _spawn(child)
        elif child.process is not None and (status := child.process.poll()) is not None:
            if now - child.started_at > LONG_LIFE:
                child.backoff = FIRST_BACKOFF
            child.restart_at = now + child.backoff
            _log.warning(
                "up.died",
                part=child.program.name,
                status=status,
                again_in=child.backoff,
                log=str(child.log),
            )
            child.backoff = min(2 * child.backoff, LONGEST_BACKOFF)


def _group(child: _Child) -> str:
    """Programs of one kind, `worker-1` and `worker-2`, stop together."""
    return child.program.name.partition("-")[0]


def _spawn(child: _Child) -> None:
    child.started_at = time.monotonic()
    with child.log.open("ab") as log:
        child.process = subprocess.Popen(  # noqa: S603 - our own programs
            child.program.command,
            env={**os.environ, **child.program.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C at the terminal must not reach the children: they are stopped in order.
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
        )


def _die_with_parent() -> None:
    """Ask Linux to end this process when the supervisor is killed outright."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _end(children: Sequence[_Child]) -> None:
    running = [child for child in children if child.process and child.process.poll() is None]
    for child in running:
        assert child.process is not None  # noqa: S101
        child.process.terminate()
    deadline = time.monotonic() + max((child.program.stop_seconds for child in running), default=0)
    for child in running:
        assert child.process is not None  # noqa: S101
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(max(0.0, deadline - time.monotonic()))
        if child.process.poll() is None:
            _log.info("up.killed", part=child.program.name)
            child.process.kill()
            child.process.wait()


def _explain(child: _Child, reason: str) -> str:
    lines = child.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    tail = "\n".join(f"    {line[:300]}" for line in lines)
    return f"{child.program.name} {reason}. The end of {child.log}:\n{tail}"
