"""Requests and answers as values: every call of the API built and read without any I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from darkroom import _errors as errors
from darkroom._latents import Body
from darkroom._retry import read_retry_after
from darkroom_wire.problems import Problem

MAX_WAIT_SECONDS = 30
"""How long one request waits for a job. The service allows 60; proxies often less."""

PAGE_SIZE = 100

COPY_SECONDS = 240
"""How long the store may need to copy a large file."""

Model = TypeVar("Model", bound=BaseModel)
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        target: A path below the service's address, or the whole address of a presigned link.
        to_store: Whether it goes to the object store, which must never see the key.
        extra_seconds: For how long the service may hold the answer back on purpose.
        done_if_repeated: Statuses that mean success on a second attempt: the first one did it.
        save_to: The file that the answer's body becomes, if it is not an error; `Answer.body` is
            empty then.
    """

    method: str
    target: str
    query: Pairs = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    to_store: bool = False
    extra_seconds: float = 0.0
    done_if_repeated: frozenset[int] = frozenset()
    save_to: Path | None = None


@dataclass(frozen=True)
class Answer:
    """What came back, read to its end. `headers` are found in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def submit(body: Body, options: Pairs, idempotency_key: str) -> Request:
    """Submit latents as a job."""
    headers = {"Content-Type": body.content_type, "Idempotency-Key": idempotency_key}
    return Request("POST", "/v1/jobs", (*options, *body.query), headers, body.content)


def announce_upload(size: int) -> Request:
    """Ask for a link with which a file of that size may be written to the store."""
    return Request("POST", "/v1/uploads", (("bytes", str(size)),))


def put_link(url: str, content: bytes) -> Request:
    """Write a file to the store."""
    return Request("PUT", url, content=content, to_store=True)


def submit_stored(place: Pairs, options: Pairs, idempotency_key: str) -> Request:
    """Submit latents that the service has: `place` is an upload or an earlier job."""
    headers = {"Idempotency-Key": idempotency_key}
    return Request("POST", "/v1/jobs", (*place, *options), headers, extra_seconds=COPY_SECONDS)


def get_job(job_id: str, wait: int = 0) -> Request:
    """Read a job, with `wait` after its end or that many seconds."""
    query = (("wait", str(wait)),) if wait else ()
    return Request("GET", _job_path(job_id), query, extra_seconds=wait)


def get_result(job_id: str, index: int, *, redirect: bool) -> Request:
    """Ask for the link to one output, or for its bytes."""
    query = (("index", str(index)), *(() if redirect else (("redirect", "false"),)))
    return Request("GET", _job_path(job_id) + "/result", query)


def get_link(url: str) -> Request:
    """Fetch a presigned link from the store."""
    return Request("GET", url, to_store=True)


def cancel_job(job_id: str) -> Request:
    """Cancel a job."""
    return Request("POST", _job_path(job_id) + "/cancel")


def delete_job(job_id: str) -> Request:
    """Delete a job with its latents and results."""
    return Request("DELETE", _job_path(job_id), done_if_repeated=frozenset({404, 410}))


def list_jobs(
    status: str | None, batch_id: str | None, limit: int | None, cursor: str | None
) -> Request:
    """Ask for one page of the jobs, newest first."""
    wanted = {
        "status": status,
        "batch_id": batch_id,
        "limit": str(min(limit or PAGE_SIZE, PAGE_SIZE)),
        "cursor": cursor,
    }
    return Request(
        "GET", "/v1/jobs", tuple((name, value) for name, value in wanted.items() if value)
    )


def list_vaes() -> Request:
    """Ask for the catalogue."""
    return Request("GET", "/v1/vaes")


def get_vae(name: str) -> Request:
    """Ask for one entry of the catalogue."""
    return Request("GET", f"/v1/vaes/{quote(name, safe='')}")


def get_queue() -> Request:
    """Ask what waits and who works."""
    return Request("GET", "/v1/queue")


def redirection(answer: Answer) -> str | None:
    """The address that an answer sends the client on to; None if it does not."""
    return answer.headers.get("Location") if 300 <= answer.status < 400 else None


def read_model(model: type[Model], answer: Answer) -> Model:
    """Read a document.

    Raises:
        UnexpectedAnswerError: it is not the document that was asked for.
    """
    if location := redirection(answer):
        raise errors.UnexpectedAnswerError(
            f"the service is elsewhere: it redirects to {location}; set DARKROOM_URL accordingly"
        )
    try:
        return model.model_validate_json(answer.body)
    except ValidationError as error:
        raise errors.UnexpectedAnswerError(
            f"a {model.__name__} document was expected, but this came: {_excerpt(answer.body)!r}; "
            "is this the address of a Darkroom service of this version?"
        ) from error


def refusal(answer: Answer) -> errors.RequestRefusedError | None:
    """Make the error that an answer stands for; None if it is not one."""
    if answer.status < 400:
        return None
    problem = _read_problem(answer)
    return _error_class(answer.status)(
        status=answer.status,
        title=problem.title,
        detail=problem.detail,
        errors=problem.errors,
        retry_after=read_retry_after(answer.headers.get("Retry-After")),
    )


_ERROR_CLASSES: Mapping[int, type[errors.RequestRefusedError]] = {
    401: errors.NotAuthorizedError,
    403: errors.NotAuthorizedError,
    404: errors.NotFoundError,
    409: errors.ConflictError,
    410: errors.GoneError,
    429: errors.OverloadedError,
    503: errors.OverloadedError,
}


def _error_class(status: int) -> type[errors.RequestRefusedError]:
    if status in _ERROR_CLASSES:
        return _ERROR_CLASSES[status]
    return errors.ServiceFaultError if status >= 500 else errors.InvalidRequestError


def _read_problem(answer: Answer) -> Problem:
    try:
        return Problem.model_validate_json(answer.body)
    except ValidationError:
        # Not from the service itself: a proxy or the store.
        try:
            title = HTTPStatus(answer.status).phrase
        except ValueError:
            title = "Refused"
        detail = _excerpt(answer.body) or "without an explanation"
        return Problem(type="about:blank", title=title, status=0, detail=detail, error=detail)


def _excerpt(body: bytes) -> str:
    return " ".join(body[:200].decode("utf-8", "replace").split())


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"
