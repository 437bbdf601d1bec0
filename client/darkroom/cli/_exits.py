"""Exit statuses, and what is said on stderr before one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import typer

from darkroom import _errors as errors


class ExitStatus(IntEnum):
    """How the command ends. Of several, the greatest counts."""

    OK = 0
    FAILED = 1
    """A job failed, or has no result to give."""
    USAGE = 2
    """The command, a file, or a request that the service refuses as it is."""
    UNREACHABLE = 3
    """The service cannot be reached, or cannot answer."""
    INTERRUPTED = 130


def exit_status(error: errors.DarkroomError) -> ExitStatus:
    """Choose the exit status for an error."""
    match error:
        case (
            errors.ServiceUnreachableError()
            | errors.UnexpectedAnswerError()
            | errors.OverloadedError()
            | errors.ServiceFaultError()
        ):
            return ExitStatus.UNREACHABLE
        case errors.ConflictError() | errors.GoneError():
            return ExitStatus.FAILED
        case errors.RequestRefusedError() | errors.SettingsError() | errors.LatentsError():
            return ExitStatus.USAGE
        case _:
            return ExitStatus.FAILED


def say(message: str) -> None:
    """Say something on stderr, where it does not mix with results."""
    typer.echo(f"darkroom: {message}", err=True)


def say_error(error: errors.DarkroomError, about: str = "") -> ExitStatus:
    """Say what went wrong and what to do about it, in one line, and give the exit status."""
    hint = _hint(error)
    say((f"{about}: " if about else "") + str(error) + (f" - {hint}" if hint else ""))
    return exit_status(error)


@contextmanager
def exit_statuses() -> Iterator[None]:
    """Turn the client's errors and Ctrl-C into exit statuses."""
    try:
        yield
    except errors.DarkroomError as error:
        raise typer.Exit(say_error(error)) from error
    except KeyboardInterrupt as error:
        say("interrupted")
        raise typer.Exit(ExitStatus.INTERRUPTED) from error


def _hint(error: errors.DarkroomError) -> str:
    match error:
        case errors.ServiceUnreachableError():
            return "is it running (darkroom up), and is DARKROOM_URL right?"
        case errors.NotAuthorizedError():
            return "set DARKROOM_API_KEY to a key of this service"
        case errors.NotFoundError():
            return "darkroom list shows the jobs there are"
        case errors.OverloadedError():
            return "try again later"
        case errors.InvalidRequestError() if any(field.field == "vae" for field in error.errors):
            return "darkroom vaes lists the names"
        case _:
            return ""
