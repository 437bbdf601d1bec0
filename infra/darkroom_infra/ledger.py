"""The ledger: what S3 holds of each job, and what decides.

inputs/DATE/JOB.safetensors   the latents
inputs/DATE/JOB.json          the spec; with the latents, the job is accepted
inputs/DATE/BATCH.batch.…     the same for a batch: one file with the latents of all its jobs
outputs/JOB/NONCE/…           what one attempt made, seen by nobody without a manifest
uploads/DATE/UPLOAD           what a caller uploads, before a job is made of it
uploads/DATE/UPLOAD.json      whose it is, and how many bytes it was announced with, if any
manifests/JOB.json            the end of the job: written once, whoever comes first
deliveries/JOB/EVENT          this webhook event need not be sent any more
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import BinaryIO, Final

from pydantic import BaseModel, ConfigDict

from darkroom_wire.ids import first_id, id_time
from darkroom_wire.jobs import Format, JobError, Status
from darkroom_wire.problems import problem_type
from darkroom_wire.tensors import PIXEL_DTYPES, TensorInfo, from_raw, to_safetensors

from . import failpoints
from .records import BatchSpec, Content, JobSpec, Manifest
from .store import ObjectStore, StoredObject

JSON = "application/json"
_INPUTS = "inputs/"
_MANIFESTS = "manifests/"
_OUTPUTS = "outputs/"
_DELIVERIES = "deliveries/"
_UPLOADS = "uploads/"
_JSON_SUFFIX = ".json"
_BATCH = "batch"

CANCELED: Final = JobError(
    type=problem_type("canceled"), title="The job was canceled", detail="canceled by its owner"
)


def latents_key(job_id: str) -> str:
    """Where a job's latents lie."""
    return f"{_INPUTS}{id_time(job_id):%Y-%m-%d}/{job_id}.safetensors"


def spec_key(job_id: str) -> str:
    """Where a job's spec lies."""
    return f"{_INPUTS}{id_time(job_id):%Y-%m-%d}/{job_id}{_JSON_SUFFIX}"


def batch_latents_key(batch_id: str) -> str:
    """Where the latents of a batch lie, those of all its jobs."""
    return f"{_INPUTS}{id_time(batch_id):%Y-%m-%d}/{batch_id}.{_BATCH}.safetensors"


def batch_spec_key(batch_id: str) -> str:
    """Where a batch's spec lies."""
    return f"{_INPUTS}{id_time(batch_id):%Y-%m-%d}/{batch_id}.{_BATCH}{_JSON_SUFFIX}"


def upload_key(upload_id: str) -> str:
    """Where an upload is written by its caller."""
    return f"{_UPLOADS}{id_time(upload_id):%Y-%m-%d}/{upload_id}"


def upload_spec_key(upload_id: str) -> str:
    """Where it stands whose an upload is."""
    return f"{upload_key(upload_id)}{_JSON_SUFFIX}"


def manifest_key(job_id: str) -> str:
    """Where a job's manifest lies."""
    return f"{_MANIFESTS}{job_id}{_JSON_SUFFIX}"


def outputs_prefix(job_id: str, nonce: str | None = None) -> str:
    """Below which prefix the outputs of a job, or of one attempt, lie."""
    return f"{_OUTPUTS}{job_id}/{nonce}/" if nonce else f"{_OUTPUTS}{job_id}/"


class UploadSpec(BaseModel):
    """An upload as it was announced, with its size where that was told. Its id tells when."""

    model_config = ConfigDict(frozen=True)

    id: str
    owner: str
    bytes: int | None


class Ledger:
    """Reads and writes what decides about jobs. Calls block; they may come from any thread.

    Every method may raise `StoreError`.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def accept(self, spec: JobSpec, latents: bytes | StoredObject) -> None:
        """Write or copy a job's latents, then write its spec. A repeat does the same again.

        Raises:
            FileNotFoundError: the object to be copied is gone, or is another one by now.
        """
        if isinstance(latents, StoredObject):
            self.store.copy(latents, latents_key(spec.id))
        else:
            self.store.put(latents_key(spec.id), latents, Format.SAFETENSORS.content_type)
        failpoints.reach("submit.latents_stored")
        self.store.put(spec_key(spec.id), spec.model_dump_json().encode(), JSON)
        failpoints.reach("submit.spec_stored")

    def accept_batch(self, spec: BatchSpec, latents: BinaryIO) -> None:
        """Write a batch's file, then its spec with all its jobs. A repeat writes the same again."""
        self.store.put(batch_latents_key(spec.id), latents, Format.SAFETENSORS.content_type)
        failpoints.reach("submit.latents_stored")
        self.store.put(batch_spec_key(spec.id), spec.model_dump_json().encode(), JSON)
        failpoints.reach("submit.spec_stored")

    def latents(self, spec: JobSpec) -> bytes:
        """Read a job's latents, a safetensors file with one tensor.

        Raises:
            FileNotFoundError: they are gone.
            TensorFormatError: what was uploaded is not there as a whole.
        """
        if spec.content is not None:
            return self._uploaded(spec.id, spec.content)
        if spec.batch_id is None or spec.offset is None:
            return self.store.get(latents_key(spec.id))
        begin, shown = spec.offset, spec.latents
        values = self.store.get(batch_latents_key(spec.batch_id), begin, begin + shown.bytes)
        return to_safetensors([from_raw(values, shown.shape, shown.dtype)])

    def _uploaded(self, job_id: str, content: Content) -> bytes:
        """Read the tensor out of an object that was uploaded."""
        info = TensorInfo(content.name, content.dtype, content.shape)
        begin, end = content.offset, content.offset + info.nbytes
        values = self.store.get(latents_key(job_id), begin, end)
        return to_safetensors([from_raw(values, info.shape, info.dtype, info.name, PIXEL_DTYPES)])

    def batch(self, batch_id: str) -> BatchSpec:
        """Read a batch as it was accepted, with all its jobs.

        Raises:
            FileNotFoundError: it is gone.
        """
        return BatchSpec.model_validate_json(self.store.get(batch_spec_key(batch_id)))

    def erase_batch(self, batch_id: str) -> None:
        """Delete a batch's latents and its spec."""
        self.store.delete([batch_latents_key(batch_id)])
        self.store.delete([batch_spec_key(batch_id)])

    def announce_upload(self, spec: UploadSpec) -> None:
        """Write whose an upload is going to be."""
        self.store.put(upload_spec_key(spec.id), spec.model_dump_json().encode(), JSON)

    def upload(self, upload_id: str) -> UploadSpec:
        """Read whose an upload is.

        Raises:
            FileNotFoundError: it was never announced, or was collected.
        """
        return UploadSpec.model_validate_json(self.store.get(upload_spec_key(upload_id)))

    def uploads_before(self, moment: datetime) -> Iterator[str]:
        """Yield the keys of what was announced or uploaded before then, by the announcement."""
        end = upload_key(first_id(moment))
        return takewhile(lambda key: key < end, self.store.list(_UPLOADS))

    def commit(self, manifest: Manifest) -> Manifest:
        """End a job, and return the manifest that ended it: this one, or an earlier one."""
        body = manifest.model_dump_json().encode()
        try:
            self.store.put_if_absent(manifest_key(manifest.job_id), body, JSON)
        except FileExistsError:
            return self._manifest(manifest.job_id)
        return manifest

    def find_manifest(self, job_id: str) -> Manifest | None:
        """Read how a job ended, if it did."""
        try:
            return self._manifest(job_id)
        except FileNotFoundError:
            return None

    def note_sent(self, about: str, event: str, state: str) -> None:
        """Note that an event need not be sent any more."""
        self.store.put(f"{_DELIVERIES}{about}/{event}", state.encode(), "text/plain")

    def sent(self, since: datetime | None = None) -> Mapping[str, Sequence[str]]:
        """Name the events that need not be sent any more, by the job or batch they are about."""
        start = f"{_DELIVERIES}{first_id(since)}" if since else ""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for key in self.store.list(_DELIVERIES, start):
            about, _, event = key.removeprefix(_DELIVERIES).partition("/")
            found[about].append(event)
        return found

    def mark_deleted(self, job_id: str) -> None:
        """Replace a manifest by one that says only that the job was deleted."""
        manifest = ending(job_id, Status.EXPIRED, timedelta())
        self.store.put(manifest_key(job_id), manifest.model_dump_json().encode(), JSON)

    def erase(self, job_id: str) -> None:
        """Delete latents, spec and every output of a job; the manifest stays.

        The spec goes last: while it is there, an interrupted deletion can be found and finished.
        """
        self.store.delete([latents_key(job_id), *self.store.list(outputs_prefix(job_id))])
        self.store.delete([spec_key(job_id)])

    def erase_outputs(self, first: str, last: str) -> None:
        """Delete every output of the jobs between two, both included."""
        behind = outputs_prefix(last) + "\U0010ffff"
        keys = self.store.list(_OUTPUTS, outputs_prefix(first))
        self.store.delete(takewhile(lambda key: key < behind, keys))

    def discard_attempt(self, job_id: str, nonce: str) -> None:
        """Delete what one attempt stored."""
        self.store.delete(self.store.list(outputs_prefix(job_id, nonce)))

    def forget(self, job_id: str) -> None:
        """Delete a manifest and what was noted of webhooks, the last traces of a job."""
        self.store.delete([manifest_key(job_id), *self.store.list(f"{_DELIVERIES}{job_id}/")])

    def spec(self, job_id: str) -> JobSpec:
        """Read what was accepted.

        Raises:
            FileNotFoundError: it is gone.
        """
        return JobSpec.model_validate_json(self.store.get(spec_key(job_id)))

    def accepted(self, since: datetime | None = None) -> Iterator[str]:
        """Yield the jobs that were accepted on that day or later, oldest first.

        A spec without latents was never accepted, nor were latents without a spec.
        """
        return (job_id for _, job_id, _, whole in self._inputs(since) if whole)

    def batches(self, since: datetime | None = None) -> Iterator[str]:
        """Yield the batches that were accepted on that day or later, oldest first."""
        return (batch for _, batch, _, whole in self._inputs(since, batches=True) if whole)

    def half_accepted(self, since: datetime | None = None) -> Iterator[tuple[str, str]]:
        """Yield the keys of latents without a spec and specs without latents, with their jobs."""
        for batches in (False, True):
            for key, owner_id, _, whole in self._inputs(since, batches=batches):
                if not whole:
                    yield key, owner_id

    def ended(self, since: datetime | None = None) -> Iterator[str]:
        """Yield the jobs that have a manifest, and were submitted on that day or later."""
        # From the start of the day, as `accepted`: else a job of that morning would seem to run.
        day = since.replace(hour=0, minute=0, second=0, microsecond=0) if since else None
        start = manifest_key(first_id(day)) if day else ""
        for key in self.store.list(_MANIFESTS, start):
            yield key.removeprefix(_MANIFESTS).removesuffix(_JSON_SUFFIX)

    def manifests_before(self, moment: datetime) -> Iterator[str]:
        """Yield the keys of the manifests of jobs that were submitted before then."""
        end = manifest_key(first_id(moment))
        return takewhile(lambda key: key < end, self.store.list(_MANIFESTS))

    def notes_before(self, moment: datetime) -> Iterator[str]:
        """Yield the keys of the notes on events of jobs and batches submitted before then."""
        end = f"{_DELIVERIES}{first_id(moment)}"
        return takewhile(lambda key: key < end, self.store.list(_DELIVERIES))

    def outputs(self, since: datetime | None = None) -> Iterator[tuple[str, str, str]]:
        """Yield every output's key, job and nonce, of jobs that were submitted since then."""
        start = outputs_prefix(first_id(since)) if since else ""
        for key in self.store.list(_OUTPUTS, start):
            _, job_id, nonce, _ = key.split("/", 3)
            yield key, job_id, nonce

    def _inputs(
        self, since: datetime | None, *, batches: bool = False
    ) -> Iterator[tuple[str, str, str, bool]]:
        """Yield key, id and suffix of the inputs, and whether both objects are there: once if so.

        `.json` sorts before `.safetensors`, so a spec comes before its latents.
        """
        start = f"{_INPUTS}{since:%Y-%m-%d}" if since else ""
        spec: tuple[str, str, str] | None = None
        for key in self.store.list(_INPUTS, start):
            owner_id, _, suffix = key.rpartition("/")[2].partition(".")
            if suffix.startswith(_BATCH) is not batches:
                continue
            if suffix.endswith("json"):
                if spec is not None:
                    yield *spec, False
                spec = (key, owner_id, suffix)
                continue
            whole = spec is not None and spec[1] == owner_id
            if spec is not None and not whole:
                yield *spec, False
            spec = None
            yield key, owner_id, suffix, whole
        if spec is not None:
            yield *spec, False

    def _manifest(self, job_id: str) -> Manifest:
        return Manifest.model_validate_json(self.store.get(manifest_key(job_id)))


def ending(job_id: str, status: Status, ttl: timedelta, error: JobError | None = None) -> Manifest:
    """Make the manifest of a job that ends now, without outputs."""
    now = datetime.now(UTC)
    return Manifest(
        job_id=job_id, status=status, finished_at=now, expires_at=now + ttl, error=error
    )
