"""What is written of a job: the spec at its start, the manifest at its end, the record between."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from darkroom_wire.jobs import Format, JobError, JobOptions, Latents, OutputInfo, Status, Timings

JOB_EVENTS = ("job.succeeded", "job.failed", "job.canceled")
BATCH_COMPLETED = "batch.completed"


class State(StrEnum):
    """A record's state: the outside's `Status`, and two that callers need not know.

    `committing` looks like running: the result is stored and only its manifest is missing.
    `deleted` looks like nothing at all.
    """

    QUEUED = "queued"
    RUNNING = "running"
    COMMITTING = "committing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"
    DELETED = "deleted"

    @property
    def status(self) -> Status:
        """What callers see."""
        match self:
            case State.COMMITTING:
                return Status.RUNNING
            case State.DELETED:
                return Status.EXPIRED
            case _:
                return Status(self.value)


class Rendering(StrEnum):
    """What the tensor of a `safetensors` output holds.

    `decoded`: the VAE's own output in about [-1, 1], [B, 3, H, W] or [B, 3, F, H, W]. `unit`: the
    same in [0, 1], frames before channels. `pixels`: uint8 with the channels last.
    """

    DECODED = "decoded"
    UNIT = "unit"
    PIXELS = "pixels"


class Content(BaseModel):
    """Where in the object with a job's latents their tensor lies, and under which name it is read.

    Only for objects that the service did not write itself: those that were uploaded.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int


class JobSpec(BaseModel):
    """What was accepted: written once by the API, to the ledger and the record, never changed."""

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    created_at: datetime
    options: JobOptions
    format: Format
    rendering: Rendering = Rendering.DECODED
    latents: Latents
    content: Content | None = None
    ttl: int
    idempotency: str = ""
    fingerprint: str = ""
    batch_id: str | None = None
    name: str | None = None
    offset: int | None = None

    @property
    def events(self) -> str:
        """The webhook events that were asked for, comma-separated; '' for none."""
        if self.options.callback_url is None:
            return ""
        return self.options.callback_events or ",".join(JOB_EVENTS)


class BatchMember(BaseModel):
    """One job of a batch. `offset` is where its values begin in the batch's file."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    latents: Latents
    offset: int


class BatchSpec(BaseModel):
    """A batch as it was accepted: its jobs share everything but their latents."""

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    created_at: datetime
    options: JobOptions
    format: Format
    ttl: int
    idempotency: str = ""
    fingerprint: str = ""
    members: tuple[BatchMember, ...] = ()

    @property
    def events(self) -> str:
        """The webhook events that were asked for, comma-separated; '' for none."""
        if self.options.callback_url is None:
            return ""
        return self.options.callback_events or BATCH_COMPLETED

    def jobs(self) -> Iterator[JobSpec]:
        """Give the specs of the batch's jobs, in their order."""
        for member in self.members:
            yield JobSpec(
                id=member.id,
                owner=self.owner,
                created_at=self.created_at,
                options=self.options.model_copy(update={"callback_events": self.events or None}),
                format=self.format,
                latents=member.latents,
                ttl=self.ttl,
                batch_id=self.id,
                name=member.name,
                offset=member.offset,
            )


class StoredOutput(OutputInfo):
    """One result in the store."""

    key: str


class Manifest(BaseModel):
    """How a job ended: the one document that decides it.

    `status` is a finished one; expired stands for a job that was deleted.
    """

    model_config = ConfigDict(frozen=True)

    job_id: str
    status: Status
    finished_at: datetime
    expires_at: datetime
    outputs: tuple[StoredOutput, ...] = ()
    error: JobError | None = None
    timings: Timings = Timings()
    provenance: dict[str, Any] = {}


@dataclass(frozen=True)
class JobRecord:
    """A job as Redis has it at one moment.

    `position` counts the jobs before a queued one; `whole` is false while records are rebuilt.
    """

    spec: JobSpec
    state: State
    attempts: int
    progress: float
    started_at: datetime | None
    position: int | None
    manifest: Manifest | None
    sent: Mapping[str, str] = field(default_factory=dict)
    whole: bool = True

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> JobRecord:
        """Read the fields that the script `describe` gives."""
        started = fields.get("started_at")
        position = fields.get("position")
        manifest = fields.get("manifest")
        return cls(
            spec=JobSpec.model_validate_json(fields["spec"]),
            state=State(fields["state"]),
            attempts=int(fields["attempts"]),
            progress=float(fields["progress"]),
            started_at=from_milliseconds(int(started)) if started else None,
            position=int(position) if position is not None else None,
            manifest=Manifest.model_validate_json(manifest) if manifest else None,
            sent=_parse_sent(fields.get("sent")),
            whole=fields["whole"] == 1,
        )


@dataclass(frozen=True)
class BatchRecord:
    """A batch as Redis has it at one moment. `counts` has the jobs by the state callers see.

    `registered` counts the jobs on record; less than `total` only while it is put on record. An
    `erased` batch was deleted; once it is `closed`, its latents are gone.
    """

    spec: BatchSpec
    total: int
    counts: Mapping[Status, int]
    registered: int
    erased: bool
    closed: bool
    finished_at: datetime | None
    sent: Mapping[str, str]

    @property
    def finished(self) -> int:
        """How many of its jobs have ended."""
        return sum(count for status, count in self.counts.items() if status.finished)

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> BatchRecord:
        """Read the fields that the script `read_batch` gives."""
        counts = dict.fromkeys(Status, 0)
        for state in State:
            counts[state.status] += int(fields.get(state.value, 0))
        finished = fields.get("finished_at")
        return cls(
            spec=BatchSpec.model_validate_json(fields["spec"]),
            total=int(fields["total"]),
            counts=counts,
            registered=int(fields["members"]),
            erased="erased" in fields,
            closed="closed" in fields,
            finished_at=from_milliseconds(int(finished)) if finished else None,
            sent=_parse_sent(fields.get("sent")),
        )


def _parse_sent(text: str | None) -> Mapping[str, str]:
    """Read what became of each event, from a hash as Lua gives it: names and values by turns."""
    flat = json.loads(text) if text else []
    pairs = zip(flat[::2], flat[1::2], strict=True) if flat else ()
    return {event: state for event, state in pairs if not event.endswith(":tries")}


def to_milliseconds(moment: datetime) -> int:
    """Milliseconds since 1970, as the records hold times."""
    return round(moment.timestamp() * 1000)


def from_milliseconds(milliseconds: int) -> datetime:
    """The moment so many milliseconds after 1970."""
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)
