"""An attempt at a job: fetch, decode, make files, store, commit.

Nothing of an attempt is seen before its commit, so it may stop anywhere: the lease ends, and the
keeper gives the job to another. An attempt that has lost its job deletes what it stored.
"""

from __future__ import annotations

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

from darkroom_infra import failpoints
from darkroom_infra.catalog import Catalog, UnknownVaeError, VaeEntry
from darkroom_infra.families import PICTURE_NAME, LatentsError
from darkroom_infra.heartbeat import Heartbeat
from darkroom_infra.ledger import Ledger, ending, outputs_prefix
from darkroom_infra.records import (
    JobSpec,
    Manifest,
    RecordsClient,
    RecordsUnavailableError,
    Rendering,
    StoredOutput,
    transitions,
)
from darkroom_infra.records.transitions import Claim
from darkroom_infra.store import StoreError, StoreUnavailableError
from darkroom_infra.telemetry import get_logger
from darkroom_wire.jobs import Format, JobError, Status, Task, Timings
from darkroom_wire.problems import problem_type
from darkroom_wire.tensors import TensorFormatError

from .encoding import TENSOR_NAME, EncodedOutput, EncodeError, encode
from .engine import STALL_SECONDS, Engine
from .loading import VaeLoadError
from .pictures import PictureError, read_picture
from .requests import AbandonedError, DecodeError, DeviceRequest, DeviceResult, OutOfMemoryError

T = TypeVar("T")

BEATS_PER_LEASE = 3
NO_LEASE = timedelta(milliseconds=1)
LATENTS_NAME = "latents"
PATIENCE = timedelta(minutes=2)
"""How long an attempt that has its picture waits for Redis or S3 to come back."""


_FAILURES: Mapping[type[Exception], tuple[str, str]] = {
    VaeLoadError: ("vae-unloadable", "The VAE cannot be loaded"),
    LatentsError: ("invalid-latents", "The latents do not fit the VAE"),
    TensorFormatError: ("invalid-latents", "The latents cannot be read"),
    PictureError: ("invalid-picture", "The picture cannot be read"),
    EncodeError: ("invalid-format", "The result does not fit the format"),
    OutOfMemoryError: ("out-of-memory", "The job does not fit into memory"),
    DecodeError: ("decode-failed", "Decoding failed"),
}
"""What the engine refuses for good: the problem's type and title."""

VERSIONS: Mapping[str, str] = {
    name: version(name) for name in ("darkroom-server", "diffusers", "torch")
}
"""What made a picture, as its provenance names it. Looking it up takes a millisecond."""

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
        """Add the time since the last lap, or one that was measured elsewhere."""
        now = time.perf_counter()
        lap = 1000 * (now - self._last if seconds is None else seconds)
        self.laps[name] = round(self.laps.get(name, 0.0) + lap, 3)
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
        self._begun: set[str] = set()

    def develop(self, job_id: str) -> None:
        """Look at a job, and do it if it is to be had: the Celery task.

        Where Redis or S3 is away the attempt ends here, and the job's lease does the rest.
        """
        if self._draining.is_set():
            return
        try:
            claim = self._records.run(transitions.claim(job_id, uuid.uuid4().hex, self._lease))
            if claim is not None and self._draining.is_set():
                # Told to stop while it was claimed: `hand_back` may not have seen it.
                self._records.run(transitions.release(claim))
            elif claim is not None:
                self._attempt(claim)
        except (RecordsUnavailableError, StoreError, OSError) as error:
            # OSError: the disk that files are encoded on is full, for example.
            _log.warning("attempt.interrupted", job=job_id, error=str(error))

    def hand_back(self, *, hanging: bool = False) -> None:
        """Take no more jobs and hand back those that are under way, without counting them.

        Args:
            hanging: The device hangs, and the process is about to end. The jobs with which it had
                begun are at fault: their attempts count, and their leases end now.
        """
        self.stop_taking()
        for claim in list(self._claims.values()):
            at_fault = hanging and claim.nonce in self._begun
            give = (
                transitions.extend(claim.spec.id, claim.nonce, NO_LEASE, 0.0)
                if at_fault
                else transitions.release(claim)
            )
            try:
                self._records.run(give)
                _log.info("attempt.handed_back", job=claim.spec.id, counts=at_fault)
            except RecordsUnavailableError as error:
                _log.warning("attempt.not_handed_back", job=claim.spec.id, error=str(error))

    def stop_taking(self) -> None:
        """Take no more jobs."""
        self._draining.set()

    def _attempt(self, claim: Claim) -> None:
        job_id, over = claim.spec.id, threading.Event()
        self._claims[claim.nonce] = claim
        failpoints.reach("attempt.claimed")
        try:
            manifest = self._make(claim, over)
            self._commit(claim, manifest)
            _log.info("job.ended", job=job_id, status=manifest.status, attempt=claim.attempts)
        except LostError:
            self._ledger.discard_attempt(job_id, claim.nonce)
            _log.info("attempt.lost", job=job_id, attempt=claim.attempts)
        finally:
            over.set()
            del self._claims[claim.nonce]
            self._begun.discard(claim.nonce)

    def _make(self, claim: Claim, over: threading.Event) -> Manifest:
        """Do the work; what cannot succeed becomes a manifest too."""
        try:
            return self._succeed(claim, over)
        except JobFailedError as failure:
            ttl = timedelta(seconds=claim.spec.ttl)
            return ending(claim.spec.id, Status.FAILED, ttl, failure.error)

    def _succeed(self, claim: Claim, over: threading.Event) -> Manifest:
        spec, watch = claim.spec, Stopwatch()
        watch.lap("queued", claim.waited_ms / 1000)
        vae = self._find_vae(spec.options.vae)
        tensor = self._fetch(claim)
        failpoints.reach("attempt.fetched")
        # Whoever was lost before may be again: alone, so that no other job is lost with it.
        alone = claim.lost_before
        request = DeviceRequest(vae, tensor, spec.options, _rendering(spec), alone, over=over)
        watch.lap("fetch")
        result = self._decode(claim, request)
        failpoints.reach("attempt.decoded")
        watch.lap("decode", result.seconds)
        stored = self._make_files(claim, request, result, watch)
        now = datetime.now(UTC)
        return Manifest(
            job_id=spec.id,
            status=Status.SUCCEEDED,
            finished_at=now,
            expires_at=now + timedelta(seconds=spec.ttl),
            outputs=stored,
            timings=watch.timings(),
            provenance=_provenance(result, request, spec),
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

    def _fetch(self, claim: Claim) -> torch.Tensor:
        """Read latents or pixels as they were submitted; a picture's file becomes pixels."""
        spec = claim.spec
        read = partial(self._ledger.latents, spec)
        try:
            tensors = safetensors.torch.load(_patiently(read, self._heartbeat(claim).beat))
        except FileNotFoundError as error:
            # Deleted under way; a job that is still accepted always has its latents.
            raise LostError from error
        except TensorFormatError as error:
            raise _failure(error) from error
        ((name, tensor),) = tensors.items()
        if name != PICTURE_NAME:
            return tensor
        try:
            return read_picture(tensor.numpy().tobytes(), spec.latents.shape)
        except PictureError as error:
            raise _failure(error) from error

    def _decode(self, claim: Claim, request: DeviceRequest) -> DeviceResult:
        """Wait for the device, and keep the lease: while waiting, and then by its progress."""
        self._engine.submit(request)
        tick = self._lease.total_seconds() / BEATS_PER_LEASE
        while not request.started.wait(tick):
            self._keep(claim, request)
        self._begin(claim, request)
        while True:
            try:
                return request.future.result(timeout=tick)
            except FutureTimeoutError:
                if self._engine.pulse.still_for() < STALL_SECONDS:
                    self._keep(claim, request)
            except tuple(_FAILURES) as error:
                raise _failure(error) from error
            except AbandonedError as error:
                raise LostError from error

    def _begin(self, claim: Claim, request: DeviceRequest) -> None:
        """Note that the attempt counts, whatever becomes of it."""
        try:
            held = self._records.run(transitions.begin(claim.spec.id, claim.nonce))
        except RecordsUnavailableError as error:
            _log.warning("attempt.begin_not_noted", job=claim.spec.id, error=str(error))
            return
        if held:
            self._begun.add(claim.nonce)
        else:
            request.abandoned = True
            raise LostError

    def _keep(self, claim: Claim, request: DeviceRequest | None = None) -> None:
        progress = request.progress if request else 0.0
        extension = transitions.extend(claim.spec.id, claim.nonce, self._lease, progress)
        try:
            held = self._records.run(extension)
        except RecordsUnavailableError as error:
            # The work goes on: whether the job was lost meanwhile, its commit will show.
            _log.warning("attempt.lease_not_renewed", job=claim.spec.id, error=str(error))
            return
        if not held:
            if request is not None:
                request.abandoned = True
            raise LostError

    def _make_files(
        self, claim: Claim, request: DeviceRequest, result: DeviceResult, watch: Stopwatch
    ) -> tuple[StoredOutput, ...]:
        """Make the files one after the other, and store each before the next is made."""
        spec, stored = claim.spec, list[StoredOutput]()
        lease = self._heartbeat(claim, request)
        self._keep(claim, request)
        try:
            files = encode(
                result.tensor,
                spec.format,
                quality=spec.options.quality,
                fps=spec.options.fps or request.vae.layout.fps,
                name=LATENTS_NAME if spec.options.task is Task.ENCODE else TENSOR_NAME,
                on_frame=lease.beat,
            )
            for index, file in enumerate(files):
                watch.lap("encode")
                stored.append(self._store(claim, index, file, lease))
                watch.lap("store")
                failpoints.reach("attempt.stored")
        except EncodeError as error:
            raise _failure(error) from error
        return tuple(stored)

    def _heartbeat(self, claim: Claim, request: DeviceRequest | None = None) -> Heartbeat:
        """Renew the lease by the steps of what comes before and after the device."""
        return Heartbeat(self._lease / BEATS_PER_LEASE, partial(self._keep, claim, request))

    def _store(
        self, claim: Claim, index: int, output: EncodedOutput, lease: Heartbeat
    ) -> StoredOutput:
        key = f"{outputs_prefix(claim.spec.id, claim.nonce)}{index}.{output.extension}"
        with output.file as file:
            put = partial(self._ledger.store.put, key, file, output.content_type)
            _patiently(put, lease.beat)
        return StoredOutput(
            key=key,
            content_type=output.content_type,
            bytes=output.bytes,
            width=output.width,
            height=output.height,
            sha256=output.sha256,
            num_frames=output.num_frames,
            fps=output.fps,
        )

    def _commit(self, claim: Claim, manifest: Manifest) -> None:
        """End the job, if it is still this attempt's.

        Raises:
            LostError: another attempt has it, or it was ended otherwise.
        """
        begin = transitions.begin_commit(claim.nonce, self._lease, manifest)
        if not _patiently(partial(self._records.run, begin)):
            raise LostError
        failpoints.reach("attempt.commit_begun")
        winner = _patiently(partial(self._ledger.commit, manifest))
        failpoints.reach("attempt.committed")
        _patiently(partial(self._records.run, transitions.finish(winner)))
        failpoints.reach("attempt.finished")
        if winner != manifest:
            raise LostError


def _rendering(spec: JobSpec) -> Rendering:
    """Say what the engine is to give: pixels for every format but safetensors."""
    return spec.rendering if spec.format is Format.SAFETENSORS else Rendering.PIXELS


def _failure(error: Exception) -> JobFailedError:
    return JobFailedError(*_FAILURES[type(error)], str(error))


def _patiently(step: Callable[[], T], on_wait: Callable[[], None] = lambda: None) -> T:
    """Take a step again while Redis or S3 is away: decoding anew would cost more than waiting.

    `on_wait` is called after each time that it could not be taken.
    """
    away = (RecordsUnavailableError, StoreUnavailableError)

    def attempt() -> T:
        try:
            return step()
        except away:
            on_wait()
            raise

    return stamina.retry(on=away, attempts=None, timeout=PATIENCE, wait_max=2.0)(attempt)()


def _provenance(result: DeviceResult, request: DeviceRequest, spec: JobSpec) -> dict[str, Any]:
    provenance = {
        **result.vae.provenance,
        **result.way,
        "versions": VERSIONS,
    }
    warnings = []
    if not torch.isfinite(request.tensor).all():
        warnings.append("the input contains NaN or infinite values")
    if spec.options.task is Task.ENCODE and request.tensor.shape[-2:] != spec.latents.shape[-2:]:
        size = " x ".join(map(str, request.tensor.shape[-2:]))
        warnings.append(f"the picture was resized to {size}, multiples that this VAE encodes")
    if warnings:
        provenance["warnings"] = warnings
    return provenance
