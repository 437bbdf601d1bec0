"""What is written of a job: the spec at its start, the manifest at its end, the record between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from darkroom_wire.jobs import Format, JobError, JobOptions, Latents, OutputInfo, Status, Timings


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


class JobSpec(BaseModel):
    """What was accepted: written once by the API, to the ledger and the record, never changed."""

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    created_at: datetime
    options: JobOptions
    format: Format
    latents: Latents
    ttl: int


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
    """A job as Redis has it at one moment. `position` counts the jobs before a queued one."""

    spec: JobSpec
    state: State
    attempts: int
    progress: float
    started_at: datetime | None
    position: int | None
    manifest: Manifest | None

    @classmethod
    def parse(cls, fields: Mapping[str, str]) -> JobRecord:
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
        )


def to_milliseconds(moment: datetime) -> int:
    """Milliseconds since 1970, as the records hold times."""
    return round(moment.timestamp() * 1000)


def from_milliseconds(milliseconds: int) -> datetime:
    """The moment so many milliseconds after 1970."""
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)
