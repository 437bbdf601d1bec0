"""Named points at which a test can break a running program, to see what it leaves behind.

`DARKROOM_FAILPOINTS` arms them, `NAME=ACTION` separated by commas; unset, reaching a point costs
one look into an empty dictionary. Actions:

    kill    the process ends as by `kill -9`
    hang    the thread never goes on
    error   S3 seems to be away

`ACTION:N` acts only when the process reaches the point for the N-th time.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping
from typing import Final

from .store import StoreUnavailableError

NAMES: Final = frozenset(
    {
        *("submit.admitted", "submit.latents_stored", "submit.spec_stored"),
        *("submit.registered", "submit.recorded"),
        *("attempt.claimed", "attempt.fetched", "attempt.decoding", "attempt.decoded"),
        *("attempt.stored", "attempt.commit_begun", "attempt.committed", "attempt.finished"),
        *("end.committed", "end.erased"),
        *("keeper.requeued", "keeper.rolled_forward"),
        *("deliver.sent", "deliver.noted"),
    }
)
ACTIONS: Final = ("kill", "hang", "error")

_lock = threading.Lock()
_armed: dict[str, tuple[str, int]] = {}
_reached: dict[str, int] = {}


def parse(text: str) -> Mapping[str, tuple[str, int]]:
    """Read `NAME=ACTION:N,…` into the action and the turn of each point; 0 for every turn.

    Raises:
        ValueError: an unknown name or action.
    """
    points = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, what = entry.partition("=")
        action, _, turn = what.partition(":")
        if name not in NAMES or action not in ACTIONS or not (turn or "1").isdigit():
            raise ValueError(f"{entry!r}: NAME=kill|hang|error[:N] expected, with a known name")
        points[name] = (action, int(turn or 0))
    return points


def arm(points: Mapping[str, tuple[str, int]]) -> None:
    """Arm these points and no others."""
    with _lock:
        _armed.clear()
        _armed.update(points)
        _reached.clear()


def reach(name: str) -> None:
    """Do what the point is armed for, if it is."""
    if not _armed:
        return
    with _lock:
        action, turn = _armed.get(name, ("", 0))
        _reached[name] = _reached.get(name, 0) + 1
        if not action or turn not in (0, _reached[name]):
            return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "hang":
        threading.Event().wait()
    raise StoreUnavailableError(f"failpoint {name}")
