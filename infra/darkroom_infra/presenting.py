"""From a record to the document that callers see."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from darkroom_wire.jobs import (
    Batch,
    BatchLinks,
    BatchStatus,
    Job,
    JobError,
    Output,
    Status,
    Timings,
)
from darkroom_wire.problems import problem_type

from .records import BatchRecord, JobRecord, State, StoredOutput
from .store import ObjectStore

LINK_SECONDS: Final = 3600

_EXPIRED = JobError(
    type=problem_type("expired"),
    title="The results have expired",
    detail="latents and results were deleted when the job's ttl ended",
)


def present(record: JobRecord, store: ObjectStore) -> Job:
    """Describe a job; links are signed for an hour, or as long as the results are kept."""
    spec, manifest = record.spec, record.manifest
    status = record.state.status
    shown = manifest if status is not Status.EXPIRED else None
    return Job(
        id=spec.id,
        status=status,
        task=spec.options.task,
        vae=spec.options.vae,
        format=spec.format,
        priority=spec.options.priority,
        latents=spec.latents,
        created_at=spec.created_at,
        started_at=record.started_at,
        finished_at=manifest.finished_at if manifest else None,
        expires_at=manifest.expires_at if manifest else None,
        attempts=record.attempts,
        queue_position=record.position if record.state is State.QUEUED else None,
        progress=1.0 if status is Status.SUCCEEDED else record.progress,
        outputs=tuple(_output(output, record, store) for output in shown.outputs) if shown else (),
        error=_EXPIRED if status is Status.EXPIRED else (shown.error if shown else None),
        timings=manifest.timings if manifest else Timings(),
        provenance=manifest.provenance if manifest else {},
        batch_id=spec.batch_id,
        name=spec.name,
        metadata=spec.options.metadata,
        callback=callback(spec.options.callback_url, spec.events, record.sent),
    )


def callback(url: str | None, events: str, sent: Mapping[str, str]) -> dict[str, Any] | None:
    """Describe a callback: where to, about what, and what became of each event that happened."""
    if url is None:
        return None
    return {"url": url, "events": events.split(","), "deliveries": dict(sent)}


def link(output: StoredOutput, record: JobRecord, store: ObjectStore) -> str:
    """Sign a link to one output, valid for an hour or as long as the results are kept."""
    seconds = LINK_SECONDS
    if record.manifest is not None:
        left = (record.manifest.expires_at - datetime.now(UTC)).total_seconds()
        seconds = max(1, min(seconds, int(left)))
    return store.presign(output.key, seconds)


def _output(output: StoredOutput, record: JobRecord, store: ObjectStore) -> Output:
    return Output(url=link(output, record, store), **output.model_dump(exclude={"key"}))


def present_batch(batch: BatchRecord) -> Batch:
    """Describe a batch."""
    spec, path = batch.spec, f"/v1/batches/{batch.spec.id}"
    return Batch(
        id=spec.id,
        status=_batch_status(batch),
        vae=spec.options.vae,
        format=spec.format,
        priority=spec.options.priority,
        created_at=spec.created_at,
        finished_at=batch.finished_at,
        total=batch.total,
        counts=dict(batch.counts),
        progress=round(batch.finished / batch.total, 6),
        metadata=spec.options.metadata,
        callback=callback(spec.options.callback_url, spec.events, batch.sent),
        links=BatchLinks(
            jobs=f"/v1/jobs?batch_id={spec.id}",
            results=f"{path}/results",
            results_zip=f"{path}/results.zip",
            events=f"{path}/events",
        ),
    )


def _batch_status(batch: BatchRecord) -> BatchStatus:
    if batch.finished >= batch.total:
        return BatchStatus.COMPLETED
    begun = batch.counts[Status.RUNNING] or batch.finished
    return BatchStatus.RUNNING if begun else BatchStatus.QUEUED
