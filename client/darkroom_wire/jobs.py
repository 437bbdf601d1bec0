"""A job as the outside sees it: its states, its options and its document."""

from __future__ import annotations

import json
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import from_json

MAX_METADATA_BYTES = 4096
MAX_TTL_SECONDS = 30 * 24 * 3600
MAX_SIDE = 65_536


class Status(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def finished(self) -> bool:
        """Whether the job will not run any more."""
        return self not in (Status.QUEUED, Status.RUNNING)


class Format(StrEnum):
    """What a job makes of the decoded tensor."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    SAFETENSORS = "safetensors"
    MP4 = "mp4"

    @property
    def content_type(self) -> str:
        """The media type of an output in this format."""
        return _CONTENT_TYPES[self]


_CONTENT_TYPES = {
    Format.PNG: "image/png",
    Format.JPEG: "image/jpeg",
    Format.WEBP: "image/webp",
    Format.SAFETENSORS: "application/x-safetensors",
    Format.MP4: "video/mp4",
}


class Priority(StrEnum):
    """Which jobs go first: interactive before normal before batch."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BATCH = "batch"

    @property
    def rank(self) -> int:
        """0 for the jobs that go first."""
        return list(Priority).index(self)


class Scaling(StrEnum):
    """What is still to be undone before the VAE sees the latents.

    `vae`: the VAE's own scaling, as a pipeline's `output_type="latent"` needs it. `none`: nothing.
    """

    VAE = "vae"
    NONE = "none"


def _json_object(value: object) -> object:
    """Read the caller's metadata from its JSON text; an object passes as it is."""
    if not isinstance(value, str):
        return value
    if len(value.encode()) > MAX_METADATA_BYTES:
        raise ValueError(f"at most {MAX_METADATA_BYTES} bytes of JSON, not {len(value.encode())}")
    try:
        # pydantic's reader bounds the nesting and refuses lone surrogates; 1e999 passes it.
        parsed = from_json(value, allow_inf_nan=False)
        json.dumps(parsed, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"a JSON object was expected: {error}") from error
    if not isinstance(parsed, dict):
        # ValueError, because pydantic turns it into a message about the field.
        raise ValueError(f"a JSON object was expected, not {type(parsed).__name__}")  # noqa: TRY004
    return parsed


Metadata = Annotated[dict[str, Any], BeforeValidator(_json_object)]


class JobOptions(BaseModel):
    """What a caller asks for: the query parameters of a submission.

    Raises:
        pydantic.ValidationError: names each parameter at fault, unknown ones included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vae: str = Field(min_length=1, max_length=128, description="a name from the catalogue")
    format: Format | None = Field(None, description="default: png, for video mp4")
    quality: int | None = Field(None, ge=1, le=100, description="of jpeg and webp (90)")
    fps: float | None = Field(None, gt=0, le=240, description="frames per second, for video")
    height: int | None = Field(None, ge=1, le=MAX_SIDE, description="pixels, for packed latents")
    width: int | None = Field(None, ge=1, le=MAX_SIDE, description="pixels, for packed latents")
    num_frames: int | None = Field(None, ge=1, le=MAX_SIDE, description="frames, for video")
    scaling: Scaling | None = Field(None, description="default: vae, without factors of your own")
    scaling_factor: float | None = Field(None, allow_inf_nan=False, description="x / factor")
    shift_factor: float | None = Field(None, allow_inf_nan=False, description="x + shift, after")
    priority: Priority = Priority.NORMAL
    callback_url: str | None = Field(None, max_length=2048, description="webhook")
    callback_events: str | None = Field(None, max_length=256, description="comma-separated")
    ttl: int | None = Field(
        None, ge=1, le=MAX_TTL_SECONDS, description="seconds to keep the results"
    )
    metadata: Metadata = Field({}, description="a JSON object of yours, given back as it came")

    @model_validator(mode="after")
    def _check_scaling(self) -> Self:
        if self.scaling_factor == 0:
            raise ValueError("scaling_factor: latents are divided by it, so it cannot be 0")
        if self.scaling and (self.scaling_factor is not None or self.shift_factor is not None):
            raise ValueError("scaling: give either scaling or scaling_factor and shift_factor")
        return self

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        if (self.height is None) != (self.width is None):
            missing = "height" if self.height is None else "width"
            raise ValueError(f"{missing}: give both height and width, or neither")
        return self


class Latents(BaseModel):
    """What was submitted, without the values. `bytes` counts the values alone."""

    model_config = ConfigDict(frozen=True)

    shape: tuple[int, ...]
    dtype: str
    bytes: int


class OutputInfo(BaseModel):
    """One picture or tensor of a finished job, without the place where it is."""

    model_config = ConfigDict(frozen=True)

    content_type: str
    bytes: int
    width: int
    height: int
    sha256: str
    num_frames: int | None = None
    fps: float | None = None


class Output(OutputInfo):
    """One picture or tensor of a finished job. `url` is a presigned link, valid for a while."""

    url: str


class JobError(BaseModel):
    """Why a job failed or was canceled."""

    model_config = ConfigDict(frozen=True)

    type: str
    title: str
    detail: str


class Timings(BaseModel):
    """Where the time of a job went, in milliseconds; steps that were not taken are left out."""

    model_config = ConfigDict(frozen=True)

    queued: float | None = None
    fetch: float | None = None
    decode: float | None = None
    encode: float | None = None
    store: float | None = None

    @model_serializer(mode="wrap")
    def _leave_out_none(self, serialize: SerializerFunctionWrapHandler) -> dict[str, float]:
        return {step: value for step, value in serialize(self).items() if value is not None}


class Job(BaseModel):
    """A job's document, as every reading call returns it."""

    model_config = ConfigDict(frozen=True)

    id: str
    status: Status
    vae: str
    format: Format
    priority: Priority
    latents: Latents
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    attempts: int = 0
    queue_position: int | None = None
    progress: float = 0.0
    outputs: tuple[Output, ...] = ()
    error: JobError | None = None
    timings: Timings = Timings()
    provenance: dict[str, Any] = {}
    batch_id: str | None = None
    name: str | None = None
    metadata: dict[str, Any] = {}
    callback: dict[str, Any] | None = None


class JobPage(BaseModel):
    """One page of a listing, newest first. `next` is the cursor of the page that follows."""

    results: list[Job]
    next: str | None = None


class VaeInfo(BaseModel):
    """One entry of the catalogue."""

    name: str
    family: str
    source: str
    subfolder: str | None = None
    revision: str | None = None
    dtype: str | None = None
    latent_channels: int | None = None
    spatial_factor: int | None = None
    temporal_factor: int | None = None
    packed: bool = False
    formats: tuple[Format, ...] = ()
    loaded: bool = False


class VaeList(BaseModel):
    """The catalogue."""

    results: list[VaeInfo]


class QueueState(BaseModel):
    """What waits and who works."""

    queued: int
    running: int
    by_priority: dict[str, int]
    by_vae: dict[str, int]
    workers: int
    throughput_per_minute: float
    oldest_queued_seconds: float | None
