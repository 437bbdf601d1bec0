"""What the client does with batches, step by step, without any I/O."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

from darkroom._errors import ConflictError, WaitTimeoutError
from darkroom._flows import Flow, Rules, read, read_late, send
from darkroom._requests import PAGE_SIZE, Pairs, Request
from darkroom_wire.jobs import Batch, BatchPage, BatchResults, BatchStatus, Job

_SAFETENSORS = "application/x-safetensors"


def submit(rules: Rules, content: bytes, query: Pairs, idempotency_key: str | None) -> Flow[Batch]:
    """Submit a batch once, however often the request has to be sent."""
    headers = {
        "Content-Type": _SAFETENSORS,
        "Idempotency-Key": idempotency_key or uuid4().hex,
    }
    request = Request("POST", "/v1/batches", query, headers, content, extra_seconds=_SLOW)
    return (yield from read(rules, request, Batch))


def refresh(rules: Rules, batch_id: str) -> Flow[Batch]:
    """Read a batch as it is now."""
    return (yield from read(rules, _get(batch_id), Batch))


def look(
    rules: Rules, batch_id: str, seconds: int, deadline: float | None, beyond: int | None = None
) -> Flow[Batch]:
    """Read a batch at its end, when more than `beyond` jobs have ended, or after some seconds."""

    def told(batch: Batch) -> bool:
        ended = beyond is not None and batch.finished > beyond
        return ended or batch.status is BatchStatus.COMPLETED

    request = _get(batch_id, seconds, beyond)
    return (yield from read_late(rules, request, Batch, seconds, deadline, told=told))


def wait(rules: Rules, batch_id: str, timeout: float | None) -> Flow[Batch]:
    """Wait for the end of all jobs of a batch.

    Raises:
        WaitTimeoutError: they were not finished in time.
    """
    deadline = rules.deadline(timeout)
    while True:
        batch = yield from look(rules, batch_id, rules.wait_seconds(deadline), deadline)
        if batch.status is BatchStatus.COMPLETED:
            return batch
        check_deadline(rules, batch, deadline)


def check_deadline(rules: Rules, batch: Batch, deadline: float | None) -> None:
    """Give up where the time to wait is over.

    Raises:
        WaitTimeoutError: it is.
    """
    if deadline is not None and rules.clock() >= deadline:
        raise WaitTimeoutError(
            f"of batch {batch.id} {batch.total - batch.finished} jobs are not finished in time"
        )


def results(
    rules: Rules, batch_id: str, cursor: str | None, limit: int = PAGE_SIZE
) -> Flow[BatchResults]:
    """Read a page of a batch's jobs, in the order of its file."""
    query = (("limit", str(limit)), *((("cursor", cursor),) if cursor else ()))
    request = Request("GET", _path(batch_id) + "/results", query)
    return (yield from read(rules, request, BatchResults))


def download_zip(rules: Rules, batch_id: str, target: Path, *, partial: bool) -> Flow[None]:
    """Fetch a batch's results as one archive, straight into a file."""
    query = (("partial", "true"),) if partial else ()
    request = Request("GET", _path(batch_id) + "/results.zip", query, save_to=target)
    yield from send(rules, request)


def cancel(rules: Rules, batch_id: str) -> Flow[Batch]:
    """Cancel what has not ended of a batch. One that has ended is left as it is."""
    try:
        return (yield from read(rules, _act(batch_id, "cancel"), Batch))
    except ConflictError:
        return (yield from refresh(rules, batch_id))


def delete(rules: Rules, batch_id: str) -> Flow[None]:
    """Delete a batch with its jobs, their latents and results."""
    gone = frozenset({404, 410})
    yield from send(
        rules,
        Request("DELETE", _path(batch_id), extra_seconds=_SLOW, done_if_repeated=gone),
    )


def page(rules: Rules, limit: int | None, cursor: str | None) -> Flow[BatchPage]:
    """Read one page of the batches, newest first."""
    wanted = {"limit": str(min(limit or PAGE_SIZE, PAGE_SIZE)), "cursor": cursor}
    query = tuple((name, value) for name, value in wanted.items() if value)
    return (yield from read(rules, Request("GET", "/v1/batches", query), BatchPage))


class Finished:
    """Which jobs of a batch are known to have ended, and where in its file to look for more.

    Jobs end about in the order of the file. What lies before the first that has not ended is not
    looked at again. A large batch is looked at once a fiftieth more of it has ended, or after a few
    seconds: each look costs the service the signing of links.
    """

    def __init__(self, total: int) -> None:
        self.seen = 0
        """How many jobs had ended when all that had was last told."""
        self._step = max(1, total // LOOKS)
        self._told: set[str] = set()
        self._start: str | None = None
        self._unbroken = True

    @property
    def beyond(self) -> int:
        """Above how many ended jobs it is worth another look."""
        return self.seen + self._step - 1

    def seconds(self, longest: int) -> int:
        """For how long to wait for that."""
        return longest if self._step == 1 else min(longest, LOOK_SECONDS)

    def page(self, batch: Batch) -> int:
        """How many jobs to ask for at once: those that ended are not far apart."""
        return max(PAGE_SIZE // 5, min(PAGE_SIZE, 2 * (batch.finished - self.seen)))

    def begin(self) -> str | None:
        """Give the cursor of the first page to be looked at."""
        self._unbroken = True
        return self._start

    def take(self, found: BatchResults) -> Iterator[Job]:
        """Give the jobs of a page that have ended and were not given before."""
        for job in found.results:
            self._unbroken = self._unbroken and job.status.finished
            if self._unbroken:
                self._start = job.id
            if job.status.finished and job.id not in self._told:
                self._told.add(job.id)
                yield job

    def enough(self, batch: Batch, given: int) -> bool:
        """Tell whether all jobs that have ended are given, so that no further page is needed."""
        return batch.status is not BatchStatus.COMPLETED and given >= batch.finished - self.seen


LOOKS = 50
LOOK_SECONDS = 5

_SLOW = 240.0
"""Seconds that a call on thousands of jobs may take longer than others."""


def _get(batch_id: str, seconds: int = 0, beyond: int | None = None) -> Request:
    wanted = {"wait": seconds or None, "finished": beyond if seconds else None}
    query = tuple((name, str(value)) for name, value in wanted.items() if value is not None)
    return Request("GET", _path(batch_id), query, extra_seconds=seconds)


def _act(batch_id: str, verb: str) -> Request:
    return Request("POST", f"{_path(batch_id)}/{verb}", extra_seconds=_SLOW)


def _path(batch_id: str) -> str:
    return f"/v1/batches/{quote(batch_id, safe='')}"
