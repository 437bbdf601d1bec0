"""The edge: requests become httpx requests, httpx's errors become Darkroom's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias
from urllib.parse import urljoin

import httpx

from darkroom._errors import ServiceUnreachableError, UnexpectedAnswerError
from darkroom._requests import Answer, Request
from darkroom._settings import Settings

Arguments: TypeAlias = dict[str, Any]

CONNECT_TIMEOUT = 10.0

# A proxy for the outside is no way to a service on the same machine.
_WITHOUT_PROXY = ("all://127.0.0.1", "all://localhost", "all://[::1]")


def service_arguments(settings: Settings, timeout: float) -> Arguments:
    """Arguments of the httpx client that talks to the service: the only one that has the key."""
    key = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    return {**store_arguments(timeout), "headers": {**_agent(), **key}, "follow_redirects": False}


def store_arguments(timeout: float) -> Arguments:
    """Arguments of the httpx client that fetches presigned links. It knows no key."""
    return {
        "timeout": httpx.Timeout(timeout, connect=CONNECT_TIMEOUT, pool=None),
        "headers": _agent(),
        "mounts": dict.fromkeys(_WITHOUT_PROXY),
        "follow_redirects": True,
    }


def request_arguments(settings: Settings, request: Request, timeout: float) -> Arguments:
    """Arguments of `httpx.Client.request`."""
    arguments: Arguments = {
        "method": request.method,
        "url": _address(settings, request),
        "headers": dict(request.headers),
        "content": request.content,
        "timeout": httpx.Timeout(
            timeout, connect=CONNECT_TIMEOUT, read=timeout + request.extra_seconds, pool=None
        ),
    }
    return {**arguments, "params": list(request.query)} if request.query else arguments


def read_answer(response: httpx.Response) -> Answer:
    """Take what is needed of a response."""
    return Answer(response.status_code, response.headers, response.content)


def without_body(response: httpx.Response) -> Answer:
    """Take what is needed of a response whose body has become a file."""
    return Answer(response.status_code, response.headers, b"")


def is_for_file(response: httpx.Response) -> bool:
    """Tell whether a body is what was asked for, and not an error or a redirection."""
    return response.is_success


@contextmanager
def file_of(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under its name once the block has ended well."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def translated(settings: Settings, request: Request) -> Iterator[None]:
    """Translate httpx's errors into Darkroom's."""
    where = "the object store" if request.to_store else f"Darkroom at {settings.url}"
    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.TooManyRedirects) as error:
        raise UnexpectedAnswerError(f"{where} gave an address that is none: {error}") from error
    except httpx.DecodingError as error:
        raise UnexpectedAnswerError(f"{where} sent what cannot be decoded: {error}") from error
    except httpx.TimeoutException as error:
        raise ServiceUnreachableError(
            f"{where} did not answer in time ({type(error).__name__})"
        ) from error
    except httpx.TransportError as error:
        raise ServiceUnreachableError(
            f"{where} cannot be reached: {error or type(error).__name__}"
        ) from error


def _address(settings: Settings, request: Request) -> str:
    if request.to_store:
        return urljoin(settings.url + "/", request.target)
    return settings.url + request.target


def _agent() -> Mapping[str, str]:
    try:
        return {"User-Agent": f"darkroom/{version('darkroom')}"}
    except PackageNotFoundError:
        return {"User-Agent": "darkroom"}
