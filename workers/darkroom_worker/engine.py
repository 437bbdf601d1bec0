"""The engine: one thread owns the device and decodes compatible requests as one batch."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from darkroom_infra.catalog import VaeEntry
from darkroom_infra.families import LatentsError
from darkroom_infra.telemetry import get_logger
from darkroom_wire.jobs import JobOptions, Scaling

from . import decoding
from .cache import VaeCache
from .loading import LoadedVae, VaeLoadError

MAX_BATCH_VALUES = 1 << 18
"""Requests are joined up to so many latent values, sixteen SD pictures of 512 x 512 pixels.

A single request may have more.
"""

LOAD_PATIENCE = 1800.0
"""Seconds that loading a VAE, maybe from the hub, may take without any sign of progress."""

_log = get_logger("worker.engine")


class DecodeError(Exception):
    """A decode that failed, with the reason."""


class OutOfMemoryError(DecodeError):
    """A single request that does not fit into the device's memory."""


class AbandonedError(Exception):
    """Nobody waits for the result any more."""


BatchKey = tuple[object, ...]


@dataclass(eq=False)
class DecodeRequest:
    """Latents that wait for the device, as they were submitted: [B, …]."""

    vae: VaeEntry
    latents: Tensor
    options: JobOptions
    as_pixels: bool
    future: Future[DecodeResult] = field(default_factory=Future)
    progress: float = 0.0
    abandoned: bool = False

    @property
    def key(self) -> BatchKey:
        """What must be equal for requests to be decoded together."""
        options = self.options
        return (
            self.vae.name,
            self.latents.shape[1:],
            self.latents.dtype,
            options.height,
            options.width,
            options.scaling or Scaling.VAE,
            options.scaling_factor,
            options.shift_factor,
        )


@dataclass(frozen=True)
class DecodeResult:
    """A decoded request: pixels [B, H, W, 3] in uint8, or the VAE's output [B, 3, H, W].

    `seconds` is the time that the device took for the batch, `batch_size` counts its pictures.
    """

    tensor: Tensor
    vae: LoadedVae
    seconds: float
    batch_size: int


class Pulse:
    """Tells progress from standstill, so that leases follow the work."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._patient_until = 0.0
        self.count = 0

    def beat(self) -> None:
        """Note a step."""
        self.count += 1

    def moved_since(self, count: int) -> bool:
        """Whether there was a step since the count was read, or none can be expected yet."""
        return self.count != count or self._clock() < self._patient_until

    @contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Expect no steps for a while."""
        self._patient_until = self._clock() + seconds
        try:
            yield
        finally:
            self._patient_until = 0.0
            self.beat()


class Engine:
    """Owns the device. `submit` may be called from any thread; everything else runs in one."""

    def __init__(self, cache: VaeCache) -> None:
        self._cache = cache
        self._waiting: deque[DecodeRequest] = deque()
        self._arrived = threading.Condition()
        self._watched: WeakSet[nn.Module] = WeakSet()
        self._batch: list[DecodeRequest] = []
        self._steps = 0
        self.pulse = Pulse()
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def submit(self, request: DecodeRequest) -> None:
        """Queue a request. Its future gets a `DecodeResult`, or one of these errors.

        Raises:
            VaeLoadError: the VAE cannot be loaded.
            LatentsError: the latents do not fit it.
            DecodeError: decoding failed; `OutOfMemoryError` where it does not fit into memory.
            AbandonedError: the request was abandoned meanwhile.
        """
        with self._arrived:
            self._waiting.append(request)
            self._arrived.notify()

    def _run(self) -> None:
        while True:
            batch = self._take()
            with torch.inference_mode():
                self._serve(batch)

    def _take(self) -> list[DecodeRequest]:
        """Wait for a request, and take along those that can be decoded with it."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._waiting)
            first = self._waiting.popleft()
            batch, values = [first], first.latents.numel()
            for request in [other for other in self._waiting if other.key == first.key]:
                if values + request.latents.numel() <= MAX_BATCH_VALUES:
                    self._waiting.remove(request)
                    batch.append(request)
                    values += request.latents.numel()
        return batch

    def _serve(self, batch: list[DecodeRequest]) -> None:
        try:
            with self.pulse.patience(LOAD_PATIENCE):
                vae = self._cache.get(batch[0].vae)
            for request in batch:
                decoding.plan(vae, request.latents, request.options)
            self._decode(vae, batch)
        except (VaeLoadError, LatentsError, DecodeError, AbandonedError) as error:
            _fail(batch, error)
        except Exception as error:  # noqa: BLE001 - whatever a model raises is its job's, not ours
            _log.warning("engine.decode_failed", vae=batch[0].vae.name, exc_info=error)
            _fail(batch, DecodeError(f"{type(error).__name__}: {error}"))

    def _decode(self, vae: LoadedVae, batch: list[DecodeRequest]) -> None:
        started = time.perf_counter()
        tensors = self._try_model(vae, batch)
        if tensors is None:
            self._decode_with_less(vae, batch)
            return
        seconds = time.perf_counter() - started
        pictures = sum(len(request.latents) for request in batch)
        for request, tensor in zip(batch, tensors, strict=True):
            request.future.set_result(DecodeResult(tensor, vae, seconds, pictures))

    def _decode_with_less(self, vae: LoadedVae, batch: list[DecodeRequest]) -> None:
        """Decode where memory is short: drop other VAEs, then halve the batch, then give up."""
        if self._cache.keep_only(vae.entry.name):
            self._decode(vae, batch)
        elif len(batch) > 1:
            middle = len(batch) // 2
            self._serve(batch[:middle])
            self._serve(batch[middle:])
        else:
            raise OutOfMemoryError(
                f"latents of shape {list(batch[0].latents.shape)} do not fit into the memory of "
                f"{vae.device} with this VAE: send fewer or smaller pictures in one job"
            )

    def _try_model(self, vae: LoadedVae, batch: list[DecodeRequest]) -> list[Tensor] | None:
        """Run the model; None where memory is short.

        The error is not handed on: its traceback would keep the tensors of the failed run alive.
        """
        try:
            return self._run_model(vae, batch)
        except torch.OutOfMemoryError as error:
            _log.warning("engine.out_of_memory", vae=vae.entry.name, error=str(error))
            return None

    def _run_model(self, vae: LoadedVae, batch: list[DecodeRequest]) -> list[Tensor]:
        self._watch(vae.module)
        self._batch, self._steps = batch, _count_steps(vae.module)
        try:
            latents = torch.cat([request.latents for request in batch])
            decoded = decoding.decode(vae, decoding.prepare(vae, latents, batch[0].options))
        finally:
            self._batch = []
        parts = torch.split(decoded, [len(request.latents) for request in batch])
        return [
            (decoding.to_pixels(part) if request.as_pixels else part).cpu()
            for request, part in zip(batch, parts, strict=True)
        ]

    def _watch(self, module: nn.Module) -> None:
        """Feel the pulse at every layer of the decoder."""
        if module in self._watched:
            return
        self._watched.add(module)
        for layer in _layers(module):
            layer.register_forward_hook(self._beat)

    def _beat(self, *_: Any) -> None:
        self.pulse.beat()
        if self._batch and all(request.abandoned for request in self._batch):
            raise AbandonedError
        for request in self._batch:
            request.progress = min(0.99, request.progress + 1 / self._steps)


def _layers(module: nn.Module) -> list[nn.Module]:
    """List the decoder's innermost modules."""
    decoder = getattr(module, "decoder", module)
    return [layer for layer in decoder.modules() if not any(layer.children())]


def _count_steps(module: nn.Module) -> int:
    return max(1, len(_layers(module)))


def _fail(batch: list[DecodeRequest], error: Exception) -> None:
    for request in batch:
        if not request.future.done():
            request.future.set_exception(error)
