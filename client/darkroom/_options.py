"""The options of a submission, checked before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from pydantic import ValidationError

from darkroom._errors import InvalidRequestError
from darkroom_wire.jobs import Format, JobOptions, Priority, Scaling, Task
from darkroom_wire.problems import FieldError


class SubmitOptions(TypedDict, total=False):
    """What can be asked for beside the VAE. None means the service's default."""

    task: Task | str | None
    """`decode`: latents to pictures; `encode`: pictures to latents."""
    format: Format | str | None
    """`png`, `jpeg`, `webp`, `safetensors`, for video also `mp4`; `encode` gives `safetensors`."""
    quality: int | None
    """Of jpeg and webp, 1 to 100."""
    fps: float | None
    """Frames per second of a video."""
    height: int | None
    """In pixels, for packed latents."""
    width: int | None
    """In pixels, for packed latents."""
    num_frames: int | None
    """Frames of a video, for packed latents."""
    scaling: Scaling | str | None
    """`vae`: undo the VAE's own scaling; `none`: it is already undone. `encode` applies it."""
    scaling_factor: float | None
    """Latents are divided by it, instead of the VAE's own; for `encode`, multiplied."""
    shift_factor: float | None
    """Added after the division; for `encode`, taken away before the multiplication."""
    priority: Priority | str | None
    """`interactive`, `normal`, `batch`."""
    callback_url: str | None
    """Where the service sends events."""
    callback_events: str | Sequence[str] | None
    """Which events: names, or one text with commas."""
    ttl: int | None
    """Seconds to keep the results."""
    metadata: Mapping[str, Any] | str | None
    """A JSON object, or its text, given back with the job."""


def options_query(vae: str | None, options: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Make the query parameters of a submission; without a VAE where the service knows it.

    Raises:
        InvalidRequestError: names each option at fault, unknown ones included.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not isinstance(events := given.get("callback_events", ""), str):
        given["callback_events"] = ",".join(events)
    try:
        if not isinstance(metadata := given.get("metadata", ""), str):
            # As text, so that its size is measured as the service measures it.
            given["metadata"] = json.dumps(metadata, separators=(",", ":"), allow_nan=False)
        checked = JobOptions.model_validate({"vae": "-" if vae is None else vae, **given})
    except ValidationError as error:
        raise _invalid([_field_error(dict(item)) for item in error.errors()]) from error
    except (TypeError, ValueError) as error:
        raise _invalid([FieldError(field="metadata", message=str(error))]) from error
    known = {"vae"} if vae is None else set[str]()
    values = checked.model_dump(mode="json", exclude_unset=True, exclude=known)
    if "metadata" in given:
        values["metadata"] = given["metadata"]
    return tuple((name, str(value)) for name, value in values.items())


def _field_error(item: Mapping[str, Any]) -> FieldError:
    return FieldError(field=".".join(map(str, item["loc"])) or "options", message=item["msg"])


def _invalid(errors: Sequence[FieldError]) -> InvalidRequestError:
    return InvalidRequestError(
        status=422,
        title="Invalid options",
        detail="not sent, because the service would refuse them",
        errors=tuple(errors),
    )
