"""Errors as the outside sees them: RFC 9457 problem documents."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

CONTENT_TYPE = "application/problem+json"


class FieldError(BaseModel):
    """What is wrong with one field: what was expected and what came."""

    model_config = ConfigDict(frozen=True)

    field: str
    message: str


class Problem(BaseModel):
    """A problem document. `error` repeats the detail for diffusers' clients."""

    model_config = ConfigDict(frozen=True)

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: tuple[FieldError, ...] = ()
    error: str


def problem_type(name: str) -> str:
    """Make the URN that stands in `type`, from a short name such as `invalid-latents`."""
    return f"urn:darkroom:problem:{name}"
