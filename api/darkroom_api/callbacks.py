"""Callbacks as a submission asks for them: checked before anything is stored."""

from __future__ import annotations

from collections.abc import Sequence

from darkroom_infra.callbacks import CallbackUrlError, check_callback_url, parse_networks
from darkroom_infra.settings import Settings
from darkroom_wire.jobs import JobOptions
from darkroom_wire.problems import FieldError

from .errors import InvalidRequestError


def check_callback(
    options: JobOptions, owner: str, settings: Settings, known: Sequence[str]
) -> None:
    """Check where a callback goes, about what, and that it can be signed.

    Raises:
        InvalidRequestError: it names the parameter at fault.
    """
    asked = options.callback_events
    if options.callback_url is None:
        if asked is not None:
            raise _refuse("callback_events", "give a callback_url too")
        return
    try:
        check_callback_url(options.callback_url, parse_networks(settings.webhook_allow))
    except CallbackUrlError as error:
        raise _refuse("callback_url", str(error)) from error
    unknown = [event for event in (asked or "").split(",") if event not in known]
    if asked is not None and unknown:
        raise _refuse(
            "callback_events",
            f"there is no event {unknown[0][:60]!r}: {', '.join(known)}, with commas between",
        )
    if not settings.secrets_of(owner):
        raise _refuse(
            "callback_url",
            "this service has no DARKROOM_WEBHOOK_SECRET with which callbacks could be signed",
        )


def _refuse(field: str, message: str) -> InvalidRequestError:
    return InvalidRequestError.of(FieldError(field=field, message=message))
