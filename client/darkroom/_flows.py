"""What the client does, step by step, without any I/O.

A flow is a generator. It yields a `Request` to be sent or a `Pause` to be waited, gets the `Answer`
or the error back, and returns its result. `Client` and `AsyncClient` only carry the steps out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from itertools import count
from typing import TypeAlias, TypeVar
from uuid import uuid4

from darkroom import _requests as requests
from darkroom._errors import (
    ConflictError,
    DarkroomError,
    GoneError,
    InvalidRequestError,
    JobCanceledError,
    JobFailedError,
    NotFoundError,
    ResultCorruptError,
    ResultExpiredError,
    UnexpectedAnswerError,
    WaitTimeoutError,
)
from darkroom._latents import Body
from darkroom._requests import Answer, Model, Request
from darkroom._retry import RetryPolicy
from darkroom_wire.jobs import Job, JobPage, Output, Status, Upload

UPLOAD_OVER = 8 << 20
"""Bytes over which latents go straight to the store, if that can be reached."""

EARLY_PAUSE = 0.5
"""Seconds before asking again where a service did not wait for the job as it was asked to."""


@dataclass(frozen=True)
class Pause:
    """A step: do nothing for so long."""

    seconds: float


@dataclass(frozen=True)
class Rules:
    """What decides about time in a flow: the retry policy, a clock and a source of chance."""

    retry: RetryPolicy
    clock: Callable[[], float]
    chance: Callable[[], float]

    def deadline(self, timeout: float | None) -> float | None:
        """The moment at which a timeout that begins now is over."""
        return None if timeout is None else self.clock() + timeout

    def wait_seconds(self, deadline: float | None) -> int:
        """For how long one request should wait."""
        return slice_seconds(None if deadline is None else deadline - self.clock())


T = TypeVar("T")
Step: TypeAlias = Request | Pause
Flow: TypeAlias = Generator[Step, Answer | None, T]


def send(rules: Rules, request: Request, deadline: float | None = None) -> Flow[Answer]:
    """Send a request as often as it takes and the policy allows."""
    began = rules.clock()
    for attempt in count(1):
        try:
            answer = yield request
            if answer is None:
                raise UnexpectedAnswerError("a request was carried out without an answer")
            error = requests.refusal(answer)
            if error is None or (attempt > 1 and answer.status in request.done_if_repeated):
                return answer
            raise error
        except DarkroomError as failure:
            now = rules.clock()
            pause = rules.retry.pause(
                failure, attempt=attempt, elapsed=now - began, chance=rules.chance()
            )
            if pause is None or (deadline is not None and now + pause > deadline):
                raise
        yield Pause(pause)
    raise AssertionError("count() has no end")


def read(
    rules: Rules, request: Request, model: type[Model], deadline: float | None = None
) -> Flow[Model]:
    """Send a request and read the document that answers it."""
    answer = yield from send(rules, request, deadline)
    return requests.read_model(model, answer)


def submit(
    rules: Rules, body: Body, query: requests.Pairs, idempotency_key: str | None
) -> Flow[Job]:
    """Submit latents once, however often the request has to be sent. Large ones are uploaded."""
    key = idempotency_key or uuid4().hex
    request = requests.submit(body, query, key)
    if len(body.content) > UPLOAD_OVER:
        upload = yield from _upload(rules, body.content)
        if upload is not None:
            place = (("upload", upload.id),)
            request = requests.submit_stored(place, (*query, *body.query), key)
    return (yield from read(rules, request, Job))


def _upload(rules: Rules, content: bytes) -> Flow[Upload | None]:
    """Write straight to the store; None where a body is the better way, or the only one."""
    try:
        upload = yield from read(rules, requests.announce_upload(len(content)), Upload)
    except (InvalidRequestError, NotFoundError, UnexpectedAnswerError):
        return None  # larger than an upload may be, or a service without uploads
    few = replace(rules, retry=replace(rules.retry, attempts=2))
    try:
        yield from send(few, requests.put_link(upload.url, content))
    except DarkroomError:
        return None
    return upload


def again(
    rules: Rules, job_id: str, query: requests.Pairs, idempotency_key: str | None
) -> Flow[Job]:
    """Submit the latents of an earlier job once more."""
    request = requests.submit_stored((("from", job_id),), query, idempotency_key or uuid4().hex)
    return (yield from read(rules, request, Job))


def refresh(rules: Rules, job_id: str) -> Flow[Job]:
    """Read a job as it is now."""
    return (yield from read(rules, requests.get_job(job_id), Job))


def look(rules: Rules, job_id: str, seconds: int, deadline: float | None) -> Flow[Job]:
    """Read a job when it ends, or after some seconds at the latest."""
    request = requests.get_job(job_id, seconds)
    return (
        yield from read_late(
            rules, request, Job, seconds, deadline, told=lambda job: job.status.finished
        )
    )


def read_late(
    rules: Rules,
    request: Request,
    model: type[Model],
    seconds: int,
    deadline: float | None,
    *,
    told: Callable[[Model], bool],
) -> Flow[Model]:
    """Send a request that the service answers when there is something to tell, or after `seconds`.

    An answer that comes too soon and tells nothing is followed by a pause.
    """
    began = rules.clock()
    # Twice the patience: what is asked for is known to exist, so its service is expected back.
    patient = replace(rules, retry=replace(rules.retry, attempts=2 * rules.retry.attempts))
    answer = yield from read(patient, request, model, deadline)
    if not told(answer) and rules.clock() - began < seconds / 2:
        yield Pause(EARLY_PAUSE)
    return answer


def wait(rules: Rules, job_id: str, timeout: float | None) -> Flow[Job]:
    """Wait for the end of a job.

    Raises:
        WaitTimeoutError: it was not finished in time.
    """
    deadline = rules.deadline(timeout)
    while True:
        job = yield from look(rules, job_id, rules.wait_seconds(deadline), deadline)
        if job.status.finished:
            return job
        if deadline is not None and rules.clock() >= deadline:
            raise WaitTimeoutError(f"job {job_id} is still {job.status} after {timeout:g} s")


def slice_seconds(remaining: float | None, longest: int = requests.MAX_WAIT_SECONDS) -> int:
    """For how long one request should wait: whole seconds, so a timeout is rounded up."""
    if remaining is None:
        return longest
    return min(longest, max(0, -int(-remaining // 1)))


def fetch_outputs(rules: Rules, job: Job) -> Flow[list[bytes]]:
    """Fetch all outputs of a finished job.

    Raises:
        JobEndedError: it ended without a result, or the result is gone.
        ResultCorruptError: other bytes came than were stored.
    """
    if job.status is Status.FAILED:
        raise JobFailedError(job, "failed")
    if job.status is Status.CANCELED:
        raise JobCanceledError(job, "was canceled")
    if job.status is Status.EXPIRED:
        raise ResultExpiredError(job, "has expired: its results are no longer kept")
    outputs = []
    for index, output in enumerate(job.outputs):
        try:
            content = yield from _fetch(rules, job.id, index)
        except GoneError as error:
            raise ResultExpiredError(job, "no longer has its results") from error
        outputs.append(_checked(job, index, output, content))
    return outputs


def _fetch(rules: Rules, job_id: str, index: int) -> Flow[bytes]:
    """Fetch an output from the store; through the service where the store cannot be reached."""
    answer = yield from send(rules, requests.get_result(job_id, index, redirect=True))
    location = requests.redirection(answer)
    if location is None:
        return answer.body
    # One attempt: the way through the service is the second, and has the policy's patience.
    once = replace(rules, retry=replace(rules.retry, attempts=1))
    try:
        stored = yield from send(once, requests.get_link(location))
    except DarkroomError:
        stored = yield from send(rules, requests.get_result(job_id, index, redirect=False))
    return stored.body


def _checked(job: Job, index: int, output: Output, content: bytes) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    if digest != output.sha256.lower():
        raise ResultCorruptError(
            f"output {index} of job {job.id} came with sha256 {digest}, {output.sha256} was "
            f"expected ({len(content)} bytes of {output.bytes}): fetch it again"
        )
    return content


def cancel(rules: Rules, job_id: str) -> Flow[Job]:
    """Cancel a job. One that is canceled already is left as it is.

    Raises:
        ConflictError: it ended in another way.
    """
    try:
        return (yield from read(rules, requests.cancel_job(job_id), Job))
    except ConflictError:
        job = yield from refresh(rules, job_id)
        if job.status is not Status.CANCELED:
            raise
        return job


def page(
    rules: Rules,
    status: str | None,
    batch_id: str | None,
    limit: int | None,
    cursor: str | None,
) -> Flow[JobPage]:
    """Read one page of the jobs."""
    request = requests.list_jobs(status, batch_id, limit, cursor)
    return (yield from read(rules, request, JobPage))
