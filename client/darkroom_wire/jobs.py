"""A job as the outside sees it: its states, its options and its document."""

from __future__ import annotations

import json
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

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
MAX_BATCH_JOBS = 10_000
MAX_NAME = 255
"""The most characters of a tensor's name in a batch."""

MAX_BATCH_HEADER_BYTES = 4 * 1024 * 1024


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


class Task(StrEnum):
    """What a job does: latents to pictures, or pictures to latents."""

    DECODE = "decode"
    ENCODE = "encode"


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
    task: Task = Field(Task.DECODE, description="latents to pictures, or pictures to latents")
    format: Format | None = Field(
        None, description="default: png, for video mp4, for encode safetensors"
    )
    quality: int | None = Field(None, ge=1, le=100, description="of jpeg, webp and mp4 (90)")
    fps: float | None = Field(
        None, gt=0, le=240, description="frames per second, for video (the model's own)"
    )
    height: int | None = Field(None, ge=1, le=MAX_SIDE, description="pixels, for packed latents")
    width: int | None = Field(None, ge=1, le=MAX_SIDE, description="pixels, for packed latents")
    num_frames: int | None = Field(None, ge=1, le=MAX_SIDE, description="frames, for video")
    scaling: Scaling | None = Field(None, description="default: vae, without factors of your own")
    scaling_factor: float | None = Field(
        None, allow_inf_nan=False, description="decode: x / factor + shift"
    )
    shift_factor: float | None = Field(
        None, allow_inf_nan=False, description="encode: (x - shift) * factor"
    )
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
    """What was submitted, without the values: latents, or for encoding pixels [B, 3, …].

    `bytes` counts the values alone.
    """

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
    """A job's document, as every reading call returns it. `task` is shown for encode jobs only."""

    model_config = ConfigDict(frozen=True)

    id: str
    status: Status
    task: Task = Task.DECODE
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

    @model_serializer(mode="wrap")
    def _leave_out_decode(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = serialize(self)
        if self.task is Task.DECODE:
            del document["task"]
        return document


class JobPage(BaseModel):
    """One page of a listing, newest first. `next` is the cursor of the page that follows."""

    results: list[Job]
    next: str | None = None


class BatchStatus(StrEnum):
    """Where a batch is in its life. `completed`: all its jobs have ended, in whichever way."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"


class BatchLinks(BaseModel):
    """Where to read on, as paths below the service's address."""

    model_config = ConfigDict(frozen=True)

    jobs: str
    results: str
    results_zip: str
    events: str


class Batch(BaseModel):
    """A batch's document: many jobs that were submitted as one file.

    `counts` has the jobs by status. `progress` is the share of them that has ended.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    status: BatchStatus
    vae: str
    format: Format
    priority: Priority
    created_at: datetime
    finished_at: datetime | None = None
    total: int
    counts: dict[Status, int]
    progress: float
    metadata: dict[str, Any] = {}
    callback: dict[str, Any] | None = None
    links: BatchLinks

    @property
    def finished(self) -> int:
        """How many of the jobs have ended."""
        return sum(count for status, count in self.counts.items() if status.finished)


class BatchPage(BaseModel):
    """One page of the batches, newest first. `next` is the cursor of the page that follows."""

    results: list[Batch]
    next: str | None = None


class BatchResults(BaseModel):
    """One page of a batch's jobs in the order of its file, with links to what they made."""

    results: list[Job]
    next: str | None = None


class Delivery(BaseModel):
    """One attempt at sending a webhook. `id` is the message's, the same for all attempts."""

    id: str
    event: str
    attempt: int
    at: datetime
    status: int | None
    latency_ms: float | None
    response: str
    error: str | None


class EventState(BaseModel):
    """What became of a webhook event, and when it is tried again.

    `state`: `pending`, `delivered`, `gone` (410, or the job was deleted), `exhausted` (the schedule
    is over), `forbidden` (the address may not be reached).
    """

    event: str
    state: str
    next_attempt_at: datetime | None = None


class Deliveries(BaseModel):
    """The attempts at sending a job's webhooks, oldest first, and what became of each event."""

    results: list[Delivery]
    events: list[EventState]


class VaeInfo(BaseModel):
    """One entry of the catalogue.

    `config` and `buffers` are in the document of one VAE, not in the list, and None while the
    service does not know them. `buffers` has the statistics of the latents that lie in the weights
    of a VAE, as `latents_mean` or `bn.running_mean`; most have none there.
    """

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
    config: dict[str, Any] | None = Field(None, description="the VAE's config.json")
    buffers: dict[str, list[float]] | None = Field(
        None, description="statistics that lie in the VAE's weights, by name"
    )


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


class JobEvent(BaseModel):
    """A change of a job, or its progress, as `/v1/jobs/ID/events` tells it."""

    type: str
    timestamp: datetime
    data: Job


class BatchEvent(BaseModel):
    """How far a batch is, as `/v1/batches/ID/events` tells it."""

    type: str
    timestamp: datetime
    data: Batch


class Upload(BaseModel):
    """Where a file may be written, straight to the store, to be submitted as `upload=ID` then.

    The link takes exactly so many bytes, or any number where none was told. Jobs can be made of the
    file for a day.
    """

    id: str
    url: str
    method: Literal["PUT"] = "PUT"
    bytes: int | None = None
    expires_at: datetime = Field(description="the link's end")
