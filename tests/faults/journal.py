"""What callers were told: every acceptance, every result that anyone saw, every wrong answer."""

from __future__ import annotations

import random
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

FINISHED = frozenset({"succeeded", "failed", "canceled"})


@dataclass(frozen=True)
class Result:
    """How a job ended, as it must look for ever: its status, and key and hash of each output."""

    status: str
    outputs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Result:
        """Read a job's document."""
        outputs = tuple(
            (object_key(output["url"]), output["sha256"]) for output in document["outputs"]
        )
        return cls(document["status"], outputs)


@dataclass
class Journal:
    """Written by many threads at once."""

    answers: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """The jobs that each idempotency key was answered with."""
    results: dict[str, Result] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    pending: set[str] = field(default_factory=set)
    """Accepted jobs that nobody has seen finished."""
    wrong: list[str] = field(default_factory=list)
    vanished: Counter[str] = field(default_factory=Counter)
    """How often an accepted job was said not to exist."""
    refusals: Counter[int] = field(default_factory=Counter)
    """How often each status refused a submission; 0 for a connection that was lost."""
    canceled: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    callbacks: dict[str, frozenset[str]] = field(default_factory=dict)
    """The event types that a job's callback is to get. For webhooks."""
    events: defaultdict[tuple[str, str], list[str]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """The ids under which an event came, by job and event type. For webhooks."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def accepted(self) -> set[str]:
        """Every job that somebody got a 202 for."""
        with self._lock:
            return set().union(*self.answers.values())

    def some(self, *, finished: bool) -> str | None:
        """Pick a job that nobody deleted, at random, one that was seen finished or another."""
        with self._lock:
            jobs = set(self.results) - self.deleted if finished else self.pending
            return random.choice(list(jobs)) if jobs else None

    def accept(self, key: str, job_id: str) -> None:
        """Note a 202."""
        with self._lock:
            self.answers[key].add(job_id)
            if job_id not in self.results and job_id not in self.deleted:
                self.pending.add(job_id)

    def refuse(self, status: int) -> None:
        """Note a submission that was not accepted, and will be tried again."""
        with self._lock:
            self.refusals[status] += 1

    def complain(self, what: str) -> None:
        """Note an answer that should never be given."""
        with self._lock:
            self.wrong.append(what)

    def see(self, document: Mapping[str, Any]) -> bool:
        """Note a job's document; True if the job has finished."""
        job_id = document["id"]
        with self._lock:
            self.attempts[job_id] = max(self.attempts.get(job_id, 0), document["attempts"])
            if document["status"] not in FINISHED:
                if job_id in self.results and job_id not in self.deleted:
                    self.changes.append(
                        f"{job_id}: {self.results[job_id].status}, then {document['status']}"
                    )
                return False
            self.pending.discard(job_id)
            result = Result.of(document)
            before = self.results.setdefault(job_id, result)
            if before != result:
                self.changes.append(f"{job_id}: {before}, then {result}")
            return True

    def delete(self, job_id: str) -> None:
        """Note that a job is being deleted: from now on anything but a result may be seen."""
        with self._lock:
            self.deleted.add(job_id)
            self.pending.discard(job_id)

    def miss(self, job_id: str) -> None:
        """Note that an accepted job was said not to exist."""
        with self._lock:
            self.vanished[job_id] += 1

    def receive(self, event: Mapping[str, Any], event_id: str) -> None:
        """Note a webhook event."""
        with self._lock:
            self.events[event["data"]["id"], event["type"]].append(event_id)


def object_key(url: str) -> str:
    """Read the key of an object from a presigned link with the bucket in its path."""
    return unquote(urlsplit(url).path).lstrip("/").partition("/")[2]
