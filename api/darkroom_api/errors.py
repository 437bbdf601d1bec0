"""Errors that carry their HTTP status, and the problem documents made of them.

ApiError
├── InvalidRequestError    400, 422 with `errors` for the fields at fault
├── UnauthorizedError      401
├── NotFoundError          404
├── ConflictError          409
├── GoneError              410
├── TooLargeError          413
├── UnsupportedMediaError  415
├── RateLimitedError       429 with Retry-After
└── UnavailableError       503 with Retry-After
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from darkroom_infra.records import RecordsFullError, RecordsUnavailableError
from darkroom_infra.store import StoreError
from darkroom_infra.telemetry import get_logger
from darkroom_wire import problems
from darkroom_wire.problems import FieldError, Problem

from .common_headers import noted_headers

RETRY_AFTER_SECONDS = 2

_log = get_logger("api")


class ApiError(Exception):
    """An answer other than success. `errors` names the fields at fault."""

    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR
    name: str = "internal"
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(self, detail: str, errors: Iterable[FieldError] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)


class InvalidRequestError(ApiError):
    """The request is understood, but impossible."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    name = "invalid-request"

    @classmethod
    def of(cls, *errors: FieldError) -> InvalidRequestError:
        """Say what is wrong with some fields."""
        return cls("; ".join(f"{error.field}: {error.message}" for error in errors), errors)


class MalformedRequestError(InvalidRequestError):
    """The request cannot be read."""

    status = HTTPStatus.BAD_REQUEST
    name = "malformed-request"


class UnauthorizedError(ApiError):
    """No key, or an unknown one."""

    status = HTTPStatus.UNAUTHORIZED
    name = "unauthorized"
    headers = MappingProxyType({"WWW-Authenticate": 'Bearer, Basic realm="darkroom"'})


class NotFoundError(ApiError):
    """There is no such thing, or it is another key's."""

    status = HTTPStatus.NOT_FOUND
    name = "not-found"


class ConflictError(ApiError):
    """Not in this state."""

    status = HTTPStatus.CONFLICT
    name = "conflict"


class GoneError(ApiError):
    """It was there, and is no more."""

    status = HTTPStatus.GONE
    name = "gone"


class TooLargeError(ApiError):
    """More than a limit allows."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    name = "too-large"
    # Else the server would go on reading what is still being sent.
    headers = MappingProxyType({"Connection": "close"})


class UnsupportedMediaError(ApiError):
    """A body of a kind that is not read here."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    name = "unsupported-media-type"


class RateLimitedError(ApiError):
    """Too often; again in so many seconds."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    name = "rate-limited"

    def __init__(self, detail: str, seconds: int) -> None:
        super().__init__(detail)
        # What comes with the refused request is not read: else the server would go on doing so.
        self.headers = {"Retry-After": str(seconds), "Connection": "close"}


class UnavailableError(ApiError):
    """Not now; later."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    name = "unavailable"
    headers = MappingProxyType({"Retry-After": str(RETRY_AFTER_SECONDS)})


def install(app: FastAPI) -> None:
    """Answer every error with a problem document."""
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(ClientDisconnect, _answer_disconnected)
    app.add_exception_handler(RecordsUnavailableError, _answer_unavailable)
    app.add_exception_handler(StoreError, _answer_unavailable)
    app.add_exception_handler(Exception, _answer_defect)


def _problem(request: Request, error: ApiError) -> Response:
    problem = Problem(
        type=problems.problem_type(error.name),
        title=error.status.phrase,
        status=error.status,
        detail=error.detail,
        instance=request.url.path,
        errors=error.errors,
        error=error.detail,
    )
    return JSONResponse(
        jsonable_encoder(problem),
        status_code=error.status,
        headers=error.headers,
        media_type=problems.CONTENT_TYPE,
    )


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 - what it is registered for
    return _problem(request, error)


async def _answer_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    faults = [_field_error(fault) for fault in error.errors()]
    return _problem(request, InvalidRequestError.of(*faults))


def _field_error(fault: dict[str, object]) -> FieldError:
    """Turn one of pydantic's faults into a field and a message that says what came."""
    location = fault["loc"]
    assert isinstance(location, Sequence)  # noqa: S101
    names = [str(part) for part in location[1:]]
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not names:
        # A rule over several fields names them itself: "field: message".
        field, separator, rest = message.partition(": ")
        return (
            FieldError(field=field, message=rest)
            if separator
            else FieldError(field="body" if "body" in location else "request", message=message)
        )
    if fault["type"] == "extra_forbidden":
        where = "query " if location[0] == "query" else ""
        message = f"there is no such {where}parameter"
    elif fault["type"] == "missing":
        message = "is required"
    elif isinstance(came := fault.get("input"), str | int | float):
        message = f"{message}, not {str(came)[:100]!r}"
    return FieldError(field=names[0], message=message)


async def _answer_http(request: Request, error: Exception) -> Response:
    """Answer what the framework refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)  # noqa: S101
    refusal = ApiError(f"{request.method} {request.url.path}: {error.detail}")
    refusal.status = HTTPStatus(error.status_code)
    refusal.name = refusal.status.phrase.lower().replace(" ", "-")
    refusal.headers = dict(error.headers or {})
    return _problem(request, refusal)


async def _answer_disconnected(request: Request, error: Exception) -> Response:
    """Answer nobody: the caller hung up in the middle of a body, which is no defect of ours."""
    del error
    _log.info("api.hung_up", path=request.url.path)
    return _problem(request, MalformedRequestError("the body ended too early"))


async def _answer_unavailable(request: Request, error: Exception) -> Response:
    _log.warning("api.unavailable", path=request.url.path, error=str(error))
    if isinstance(error, RecordsFullError):
        detail = "the job records have no room for more now"
    elif isinstance(error, RecordsUnavailableError):
        detail = "the job records cannot be reached now"
    else:
        detail = "the object store cannot be reached now"
    return _problem(request, UnavailableError(f"{detail}; try again"))


async def _answer_defect(request: Request, error: Exception) -> Response:
    # This answer is made outside of everything else, `CommonHeaders` too.
    noted = noted_headers(request)
    _log.error("api.defect", path=request.url.path, exc_info=error, **noted)
    answer = _problem(request, ApiError("a defect in the service; it was logged"))
    answer.headers.update(noted)
    return answer
