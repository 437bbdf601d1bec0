"""The ledger: what S3 holds of each job, and what decides.

inputs/DATE/JOB.safetensors   the latents
inputs/DATE/JOB.json          the spec; with the latents, the job is accepted
outputs/JOB/NONCE/…           what one attempt made, seen by nobody without a manifest
manifests/JOB.json            the end of the job: written once, whoever comes first
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from darkroom_wire.ids import id_time
from darkroom_wire.jobs import Format, JobError, Status

from .records import JobSpec, Manifest
from .store import ObjectStore

JSON = "application/json"
_INPUTS = "inputs/"
_SPEC_SUFFIX = ".json"


def latents_key(job_id: str) -> str:
    """Where a job's latents lie."""
    return f"{_INPUTS}{id_time(job_id):%Y-%m-%d}/{job_id}.safetensors"


def spec_key(job_id: str) -> str:
    """Where a job's spec lies."""
    return f"{_INPUTS}{id_time(job_id):%Y-%m-%d}/{job_id}{_SPEC_SUFFIX}"


def manifest_key(job_id: str) -> str:
    """Where a job's manifest lies."""
    return f"manifests/{job_id}.json"


def outputs_prefix(job_id: str, nonce: str | None = None) -> str:
    """Below which prefix the outputs of a job, or of one attempt, lie."""
    return f"outputs/{job_id}/{nonce}/" if nonce else f"outputs/{job_id}/"


class Ledger:
    """Reads and writes what decides about jobs. Calls block; they may come from any thread.

    Every method may raise `StoreError`.
    """

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def accept(self, spec: JobSpec, latents: bytes) -> None:
        """Write a job's latents, then its spec. A repeat writes the same again."""
        self.store.put(latents_key(spec.id), latents, Format.SAFETENSORS.content_type)
        self.store.put(spec_key(spec.id), spec.model_dump_json().encode(), JSON)

    def latents(self, job_id: str) -> bytes:
        """Read a job's latents, a safetensors file with one tensor.

        Raises:
            FileNotFoundError: they are gone.
        """
        return self.store.get(latents_key(job_id))

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

    def discard_attempt(self, job_id: str, nonce: str) -> None:
        """Delete what one attempt stored."""
        self.store.delete(self.store.list(outputs_prefix(job_id, nonce)))

    def forget(self, job_id: str) -> None:
        """Delete a manifest, the last trace of a job."""
        self.store.delete([manifest_key(job_id)])

    def specs(self) -> Iterator[JobSpec]:
        """Yield every accepted job, oldest first. A spec without latents was never accepted."""
        latents: str | None = None
        for key in self.store.list(_INPUTS):
            # `.json` sorts before `.safetensors`, so a job's spec comes before its latents.
            if key.endswith(_SPEC_SUFFIX):
                latents = key.removesuffix(_SPEC_SUFFIX) + ".safetensors"
            elif key == latents:
                spec = self.store.get(latents.removesuffix(".safetensors") + _SPEC_SUFFIX)
                yield JobSpec.model_validate_json(spec)

    def _manifest(self, job_id: str) -> Manifest:
        return Manifest.model_validate_json(self.store.get(manifest_key(job_id)))


def ending(job_id: str, status: Status, ttl: timedelta, error: JobError | None = None) -> Manifest:
    """Make the manifest of a job that ends now, without outputs."""
    now = datetime.now(UTC)
    return Manifest(
        job_id=job_id, status=status, finished_at=now, expires_at=now + ttl, error=error
    )
