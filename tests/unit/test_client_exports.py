"""What `import darkroom` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import darkroom

HEAVY = ("diffusers", "torch", "PIL", "numpy", "httpx", "pydantic", "rich", "typer")


def test_exported_names() -> None:
    """The public names are these. Adding one is a decision, removing one breaks callers."""
    assert sorted(darkroom.__all__) == [
        "AsyncBatchHandle",
        "AsyncClient",
        "AsyncJobHandle",
        "BatchHandle",
        "Client",
        "ConflictError",
        "DarkroomError",
        "GoneError",
        "InvalidRequestError",
        "JobCanceledError",
        "JobEndedError",
        "JobFailedError",
        "JobHandle",
        "LatentsError",
        "NotAuthorizedError",
        "NotFoundError",
        "OverloadedError",
        "RemoteVAE",
        "RequestRefusedError",
        "ResultCorruptError",
        "ResultExpiredError",
        "ResultTypeError",
        "RetryPolicy",
        "ServiceFaultError",
        "ServiceUnreachableError",
        "SettingsError",
        "SubmitOptions",
        "UnexpectedAnswerError",
        "VaeDetailsError",
        "WaitTimeoutError",
        "remote_decode",
        "remote_encode",
    ]


@pytest.mark.parametrize("name", darkroom.__all__)
def test_every_name_can_be_loaded(name: str) -> None:
    """Each public name exists, and each error is in the one tree."""
    value = getattr(darkroom, name)
    if name.endswith("Error"):
        assert issubclass(value, darkroom.DarkroomError)


def test_unknown_name() -> None:
    """A name that does not exist is an AttributeError, as with any module."""
    with pytest.raises(AttributeError, match="Clint"):
        _ = darkroom.Clint  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import darkroom", HEAVY),
        ("from darkroom import Client; Client().close()", ("torch", "PIL", "numpy")),
        ("from darkroom import RemoteVAE, remote_decode", ("torch", "PIL", "diffusers")),
    ],
)
def test_import_is_light(statement: str, heavy: tuple[str, ...]) -> None:
    """Importing the package loads nothing heavy, and making a client neither torch nor PIL."""
    code = f"import sys; {statement}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
