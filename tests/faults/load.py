"""Callers: submitters that try again until they are accepted, and watchers that look at jobs."""

from __future__ import annotations

import itertools
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self

import httpx
import pytest

from tests.conftest import make_latents
from tests.faults.journal import Journal
from tests.faults.site import Site

HEADERS = {"Content-Type": "application/x-safetensors"}
TRY_AGAIN = frozenset({429, 502, 503, 504})
PAUSE = 0.05
PATIENCE = 90.0
"""Without any progress for so long, a job counts as stuck."""

_BODIES = [make_latents(1, 4, 4, 4, seed=seed) for seed in range(64)]


class Caller:
    """One HTTP client that goes on to the next API where one does not answer."""

    def __init__(self, urls: Sequence[str]) -> None:
        # Nothing here is TLS, and reading the certificates of the world takes its time.
        self._clients = deque(
            httpx.Client(base_url=url, timeout=httpx.Timeout(70, connect=5), verify=False)
            for url in urls
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()

    def call(self, method: str, path: str, **arguments: Any) -> httpx.Response | None:
        """Call once; None where nothing, or only half an answer, came back."""
        try:
            return self._clients[0].request(method, path, **arguments)
        except httpx.TransportError:
            self._clients.rotate()
            return None


class Load:
    """Threads that submit and threads that watch, until all that was ordered is finished."""

    def __init__(
        self,
        site: Site,
        *,
        submitters: int = 6,
        watchers: int = 2,
        backlog: int = 200,
        body: Callable[[int], bytes] = lambda number: _BODIES[number % len(_BODIES)],
        **options: str,
    ) -> None:
        self.site = site
        self.journal = Journal()
        self._backlog = backlog
        self._body = body
        self.options = {"vae": "demo", **options}
        self._ordered = self._busy = self._number = 0
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._unwatched: deque[str] = deque()
        self._threads = [
            *(threading.Thread(target=self._submit, daemon=True) for _ in range(submitters)),
            *(threading.Thread(target=self._watch, daemon=True) for _ in range(watchers)),
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    @property
    def accepted(self) -> int:
        """How many jobs were accepted."""
        return len(self.journal.answers)

    @property
    def finished(self) -> int:
        """How many jobs were seen finished."""
        return len(self.journal.results)

    def order(self, count: int = 10**9) -> None:
        """Have so many more jobs submitted, never more than the backlog unfinished at once."""
        with self._changed:
            self._ordered += count
            self._changed.notify_all()

    def cease(self) -> None:
        """Begin no further submission."""
        with self._changed:
            self._ordered = 0

    def wait_accepted(self, more: int = 1) -> None:
        """Wait until so many more jobs were accepted, or all that were ordered."""
        goal = self.accepted + more
        self._await(lambda: min(goal - self.accepted, self._ordered + self._busy))

    def wait_finished(self, more: int = 1) -> None:
        """Wait until so many more jobs were seen finished, or all that were ordered."""
        goal = self.finished + more
        self._await(lambda: min(goal - self.finished, self._unfinished()))

    def settle(self) -> None:
        """Wait until all that was ordered is finished, then look at every job once more."""
        self._await(self._unfinished)
        with Caller(self.site.urls()) as caller:
            self._look_at_all(caller)

    def _look_at_all(self, caller: Caller) -> None:
        ours = self.journal.accepted
        cursor: str | None = None
        while True:
            answer = caller.call("GET", "/v1/jobs", params={"limit": 200, "cursor": cursor or ()})
            if answer is None or answer.status_code in TRY_AGAIN:
                time.sleep(PAUSE)
                continue
            page = answer.raise_for_status().json()
            for document in page["results"]:
                if document["id"] in ours:
                    self.journal.see(document)
            cursor = page["next"]
            if cursor is None:
                return

    def _unfinished(self) -> int:
        return self._ordered + self._busy + len(self.journal.pending)

    def _await(self, left: Callable[[], int]) -> None:
        """Wait until nothing is left; give up only where nothing has moved for long."""
        last, moved = left(), time.monotonic()
        while last > 0:
            time.sleep(0.01)
            now = left()
            if now != last:
                last, moved = now, time.monotonic()
            if time.monotonic() - moved > PATIENCE:
                some = ", ".join(sorted(self.journal.pending)[:5])
                pytest.fail(f"{last} left, and nothing moves; some that are unfinished: {some}")

    def _submit(self) -> None:
        with Caller(self.site.urls()) as caller:
            while not self._stop.is_set():
                with self._changed:
                    self._changed.wait_for(self._may_submit, timeout=PAUSE)
                    if self._stop.is_set() or not self._may_submit():
                        continue
                    self._ordered -= 1
                    self._busy += 1
                    self._number += 1
                    number = self._number
                self._submit_one(caller, self._body(number))
                with self._changed:
                    self._busy -= 1

    def _may_submit(self) -> bool:
        return self._ordered > 0 and len(self.journal.pending) < self._backlog

    def _submit_one(self, caller: Caller, body: bytes) -> None:
        job_id = submit(caller, self.journal, body, self.options, self._stop)
        if job_id is not None:
            self._unwatched.append(job_id)

    def _watch(self) -> None:
        """Follow the oldest job to its end, and now and then look at one that has ended."""
        with Caller(self.site.urls()) as caller:
            while not self._stop.is_set():
                try:
                    job_id = self._unwatched.popleft()
                except IndexError:
                    self._stop.wait(PAUSE)
                    continue
                while not self._stop.is_set() and not look(caller, self.journal, job_id, wait=5):
                    pass
                known = list(itertools.islice(self.journal.results, 50))
                if known and random.random() < 0.2:
                    look(caller, self.journal, random.choice(known))


def submit(
    caller: Caller,
    journal: Journal,
    body: bytes,
    options: dict[str, str],
    stop: threading.Event,
    key: str | None = None,
) -> str | None:
    """Submit until it is accepted, under one idempotency key; None if told to stop before."""
    key = key or str(uuid.uuid4())
    headers = {**HEADERS, "Idempotency-Key": key}
    while not stop.is_set():
        answer = caller.call("POST", "/v1/jobs", params=options, content=body, headers=headers)
        status = answer.status_code if answer is not None else 0
        if answer is not None and status in (200, 202):
            job_id = str(answer.json()["id"])
            journal.accept(key, job_id)
            return job_id
        journal.refuse(status)
        if answer is not None and status not in TRY_AGAIN:
            journal.complain(f"a submission was answered {status}: {answer.text[:300]}")
        if answer is not None and status == 503 and "Retry-After" not in answer.headers:
            journal.complain(f"503 without Retry-After: {answer.text[:300]}")
        stop.wait(PAUSE)
    return None


def look(caller: Caller, journal: Journal, job_id: str, wait: int | None = None) -> bool:
    """Look at a job once; True if it has finished."""
    answer = caller.call("GET", f"/v1/jobs/{job_id}", params={} if wait is None else {"wait": wait})
    if answer is not None and answer.status_code == 200:
        return journal.see(answer.json())
    if answer is not None and answer.status_code == 410 and job_id in journal.deleted:
        return True
    if answer is not None and answer.status_code == 404:
        journal.miss(job_id)
    elif answer is not None and answer.status_code not in TRY_AGAIN:
        journal.complain(f"{job_id} was answered {answer.status_code}: {answer.text[:300]}")
    time.sleep(PAUSE)
    return job_id in journal.deleted
