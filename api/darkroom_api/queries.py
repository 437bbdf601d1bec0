"""What a request may not have: parameters that nobody knows, doubtful ones, a needless body."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import Request

from darkroom_wire.problems import FieldError

from .errors import InvalidRequestError


def refuse_repeated(request: Request) -> None:
    """Refuse a parameter that came twice: which one was meant? Only `shape` is a list.

    Raises:
        InvalidRequestError: names each of them.
    """
    names = [name for name, _ in request.query_params.multi_items() if name != "shape"]
    _refuse({name for name in names if names.count(name) > 1}, "was given more than once")


def refuse_unknown(request: Request, known: set[str]) -> None:
    """Refuse a parameter that nothing would come of.

    Raises:
        InvalidRequestError: names each of them.
    """
    _refuse(set(request.query_params) - known, "there is no such query parameter")


async def refuse_body(request: Request) -> None:
    """Refuse a body where there is none to be.

    Raises:
        InvalidRequestError: there is one.
    """
    async for chunk in request.stream():
        if chunk:
            raise InvalidRequestError.of(
                FieldError(field="body", message="this call takes none, but one came")
            )


def _refuse(names: Iterable[str], message: str) -> None:
    faults = [FieldError(field=name, message=message) for name in sorted(names)]
    if faults:
        raise InvalidRequestError.of(*faults)
