"""An attempt at a job: fetch, decode, encode, store, commit.

Nothing of an attempt is seen before its commit, so it may stop anywhere: the lease ends, and the
keeper gives the job to another. An attempt that has lost its job deletes what it stored.
"""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

import safetensors.torch
import stamina
import torch

from darkroom_infra.catalog import Catalog, UnknownVaeError, VaeEntry
from darkroom_infra.families import LatentsError
from darkroom_infra.ledger import Ledger, ending, outputs_prefix
from darkroom_infra.records import (
    Manifest,
    RecordsClient,
    RecordsUnavailableError,
    StoredOutput,
    transitions,
)
from darkroom_infra.records.transitions import Claim
from darkroom_infra.store import StoreError, StoreUnavailableError
from darkroom_infra.telemetry import get_logger
from darkroom_wire.jobs import Format, JobError, Status, Timings
from darkroom_wire.problems import problem_type

from .encoding import EncodedOutput, encode
from .engine import (
    AbandonedError,
    DecodeError,
    DecodeRequest,
    DecodeResult,
    Engine,
    OutOfMemoryError,
)
from .loading import VaeLoadError

T = TypeVar("T")

BEATS_PER_LEASE = 3
PATIENCE = timedelta(seconds=60)
"""How long an attempt that has its picture waits for Redis or S3 to come back."""


_FAILURES: Mapping[type[Exception], tuple[str, str]] = {
    VaeLoadError: ("vae-unloadable", "The VAE cannot be loaded"),
    LatentsError: ("invalid-latents", "The latents do not fit the VAE"),
    OutOfMemoryError: ("out-of-memory", "The job does not fit into memory"),
    DecodeError: ("decode-failed", "Decoding failed"),
}
"""What the engine refuses for good: the problem's type and title."""

_log = get_logger("worker")


class LostError(Exception):
    """The job is no longer this attempt's: canceled, deleted, or given to another."""


class JobFailedError(Exception):
    """The job cannot succeed, however often it is tried."""

    def __init__(self, name: str, title: str, detail: str) -> None:
        super().__init__(detail)
        self.error = JobError(type=problem_type(name), title=title, detail=detail)


@dataclass
class Stopwatch:
    """Measures the steps of an attempt, in milliseconds."""

    laps: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, name: str, seconds: float | None = None) -> None:
        """Note the time since the last lap, or one that was measured elsewhere."""
        now = time.perf_counter()
        self.laps[name] = round(1000 * (now - self._last if seconds is None else seconds), 3)
        self._last = now

    def timings(self) -> Timings:
        """Give the laps as the job's document shows them."""
        return Timings.model_validate(self.laps)


class Developer:
    """Turns claimed jobs into pictures. Called from Celery's threads."""

    def __init__(
        self,
        records: RecordsClient,
        ledger: Ledger,
        catalog: Catalog,
        engine: Engine,
        lease: timedelta,
    ) -> None:
        self._records = records
        self._ledger = ledger
        self._catalog = catalog
        self._engine = engine
        self._lease = lease
        self._draining = threading.Event()
        self._claims: dict[str, Claim] = {}

    def develop(self, job_id: str) -> None:
        """Look at a job, and do it if it is to be had: the Celery task.

        Where Redis or S3 is away the attempt ends here, and the job's lease does the rest.
        """
        if self._draining.is_set():
            return
        try:
            claim = self._records.run(transitions.claim(job_id, uuid.uuid4().hex, self._lease))
            if claim is not None:
                self._attempt(claim)
        except (RecordsUnavailableError, StoreError) as error:
            _log.warning("attempt.interrupted", job=job_id, error=str(error))

    def drain(self) -> None:
        """Hand back the jobs that are under way; `stop_taking` comes first."""
        for claim in list(self._claims.values()):
            try:
                self._records.run(transitions.release(claim))
                _log.info("attempt.handed_back", job=claim.spec.id)
            except RecordsUnavailableError as error:
                _log.warning("attempt.not_handed_back", job=claim.spec.id, error=str(error))

    def stop_taking(self) -> None:
        """Take no more jobs."""
        self._draining.set()

    def _attempt(self, claim: Claim) -> None:
        job_id = claim.spec.id
        self._claims[claim.nonce] = claim
        try:
            manifest = self._make(claim)
            self._commit(claim, manifest)
            _log.info("job.ended", job=job_id, status=manifest.status, attempt=claim.attempts)
        except LostError:
            self._ledger.discard_attempt(job_id, claim.nonce)
            _log.info("attempt.lost", job=job_id, attempt=claim.attempts)
        finally:
            del self._claims[claim.nonce]

    def _make(self, claim: Claim) -> Manifest:
        """Do the work; what cannot succeed becomes a manifest too."""
        try:
            return self._succeed(claim)
        except JobFailedError as failure:
            ttl = timedelta(seconds=claim.spec.ttl)
            return ending(claim.spec.id, Status.FAILED, ttl, failure.error)

    def _succeed(self, claim: Claim) -> Manifest:
        spec, watch = claim.spec, Stopwatch()
        watch.lap("queued", claim.waited_ms / 1000)
        vae = self._find_vae(spec.options.vae)
        latents = self._fetch(spec.id)
        watch.lap("fetch")
        as_pixels = spec.format is not Format.SAFETENSORS
        request = DecodeRequest(vae, latents, spec.options, as_pixels)
        result = self._decode(claim, request)
        watch.lap("decode", result.seconds)
        self._keep(claim, request)
        encoded = encode(result.tensor, spec.format, spec.options.quality)
        watch.lap("encode")
        stored = self._store(claim, encoded)
        watch.lap("store")
        now = datetime.now(UTC)
        return Manifest(
            job_id=spec.id,
            status=Status.SUCCEEDED,
            finished_at=now,
            expires_at=now + timedelta(seconds=spec.ttl),
            outputs=stored,
            timings=watch.timings(),
            provenance=_provenance(result, latents),
        )

    def _find_vae(self, name: str) -> VaeEntry:
        try:
            return self._catalog[name]
        except UnknownVaeError:
            raise JobFailedError(
                "vae-unknown",
                "The worker does not know the VAE",
                f"VAE {name!r} is not in this worker's catalogue",
            ) from None

    def _fetch(self, job_id: str) -> torch.Tensor:
        try:
            tensors = safetensors.torch.load(self._ledger.latents(job_id))
        except FileNotFoundError as error:
            # Deleted under way; a job that is still accepted always has its latents.
            raise LostError from error
        return next(iter(tensors.values()))

    def _decode(self, claim: Claim, request: DecodeRequest) -> DecodeResult:
        """Wait for the engine, and keep the lease as long as the engine makes progress."""
        self._engine.submit(request)
        tick = self._lease.total_seconds() / BEATS_PER_LEASE
        while True:
            count = self._engine.pulse.count
            try:
                return request.future.result(timeout=tick)
            except FutureTimeoutError:
                if self._engine.pulse.moved_since(count):
                    self._keep(claim, request)
            except tuple(_FAILURES) as error:
                raise JobFailedError(*_FAILURES[type(error)], str(error)) from error
            except AbandonedError as error:
                raise LostError from error

    def _keep(self, claim: Claim, request: DecodeRequest) -> None:
        extension = transitions.extend(claim.spec.id, claim.nonce, self._lease, request.progress)
        try:
            held = self._records.run(extension)
        except RecordsUnavailableError as error:
            # The work goes on: whether the job was lost meanwhile, its commit will show.
            _log.warning("attempt.lease_not_renewed", job=claim.spec.id, error=str(error))
            return
        if not held:
            request.abandoned = True
            raise LostError

    def _store(self, claim: Claim, encoded: list[EncodedOutput]) -> tuple[StoredOutput, ...]:
        prefix = outputs_prefix(claim.spec.id, claim.nonce)
        stored: list[StoredOutput] = []
        for index, output in enumerate(encoded):
            key = f"{prefix}{index}.{output.extension}"
            _patiently(partial(self._ledger.store.put, key, output.body, output.content_type))
            stored.append(
                StoredOutput(
                    key=key,
                    content_type=output.content_type,
                    bytes=len(output.body),
                    width=output.width,
                    height=output.height,
                    sha256=hashlib.sha256(output.body).hexdigest(),
                )
            )
        return tuple(stored)

    def _commit(self, claim: Claim, manifest: Manifest) -> None:
        """End the job, if it is still this attempt's.

        Raises:
            LostError: another attempt has it, or it was ended otherwise.
        """
        begin = transitions.begin_commit(claim.nonce, self._lease, manifest)
        if not _patiently(partial(self._records.run, begin)):
            raise LostError
        winner = _patiently(partial(self._ledger.commit, manifest))
        _patiently(partial(self._records.run, transitions.finish(winner)))
        if winner != manifest:
            raise LostError


def _patiently(step: Callable[[], T]) -> T:
    """Take a step again while Redis or S3 is away: decoding anew would cost more than waiting."""
    away = (RecordsUnavailableError, StoreUnavailableError)
    return stamina.retry(on=away, attempts=None, timeout=PATIENCE, wait_max=2.0)(step)()


def _provenance(result: DecodeResult, latents: torch.Tensor) -> dict[str, Any]:
    provenance = {
        **result.vae.provenance,
        "method": "whole",
        "batch_size": result.batch_size,
        "versions": {name: version(name) for name in ("darkroom-server", "diffusers", "torch")},
    }
    if not torch.isfinite(latents).all():
        provenance["warnings"] = ["the latents contain NaN or infinite values"]
    return provenance
