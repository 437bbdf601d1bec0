"""The engine: one thread owns the device and serves compatible requests as one batch."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from darkroom_infra import failpoints
from darkroom_infra.catalog import VaeEntry
from darkroom_infra.families import LatentsError
from darkroom_infra.records import Rendering
from darkroom_infra.telemetry import get_logger
from darkroom_wire.jobs import JobOptions, Scaling, Task

from . import decoding
from .batching import Batching
from .cache import VaeCache
from .heap import Heap
from .loading import LoadedVae, VaeLoadError
from .planning import DoesNotFitError

MAX_BATCH_VALUES = 1 << 18
"""Requests are joined up to so many latent values, sixteen SD pictures of 512 x 512 pixels.

A single request may have more.
"""

LOAD_SECONDS = 1800.0
"""How long loading a VAE, maybe from the hub, may take."""

STALL_SECONDS = 120.0
"""How long one layer may take: after so long without a step a decode is taken to hang."""

CLEAR_SECONDS = 30.0
"""How long a request that is to be alone waits for what was decoded before to be stored."""

USABLE = 0.8
"""The part of the free memory that a decode may count on."""

_log = get_logger("worker.engine")


class DecodeError(Exception):
    """A decode that failed, with the reason."""


class OutOfMemoryError(DecodeError):
    """A single request that does not fit into the device's memory."""


class AbandonedError(Exception):
    """Nobody waits for the result any more."""


BatchKey = tuple[object, ...]
Made = tuple[list[Tensor], decoding.Way]
"""A tensor for each request of a batch, and how they were made."""


@dataclass(eq=False)
class DeviceRequest:
    """What waits for the device: latents as they were submitted, [B, …], or pixels to encode.

    `alone` keeps it apart from others: it is in no batch with them, and the device begins with it
    when those that it began before are over. `started` is set once the device has begun with it or
    has refused it, and `over` by who submitted it, once nothing of it is lost with the process.
    """

    vae: VaeEntry
    tensor: Tensor
    options: JobOptions
    rendering: Rendering = Rendering.DECODED
    alone: bool = False
    future: Future[DeviceResult] = field(default_factory=Future)
    started: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    progress: float = 0.0
    abandoned: bool = False

    @property
    def key(self) -> BatchKey:
        """What must be equal for requests to be decoded together."""
        options = self.options
        return (
            self.vae.name,
            self.tensor.shape[1:],
            self.tensor.dtype,
            options.task,
            options.height,
            options.width,
            options.num_frames,
            options.scaling or Scaling.VAE,
            options.scaling_factor,
            options.shift_factor,
            id(self) if self.alone else None,
        )


@dataclass(frozen=True)
class DeviceResult:
    """What came of a request: a decoded tensor as it was asked for, or latents.

    `seconds` is the time that the device took for all requests that it took together.
    """

    tensor: Tensor
    vae: LoadedVae
    way: decoding.Way
    seconds: float


class Pulse:
    """Tells progress from standstill, so that leases follow the work."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    def beat(self) -> None:
        """Note a step."""
        self._last = self._clock()

    def still_for(self) -> float:
        """Count the seconds since the last step."""
        return self._clock() - self._last


class Engine:
    """Owns the device. `submit` may be called from any thread; everything else runs in one."""

    def __init__(
        self,
        cache: VaeCache,
        memory_budget: int | None = None,
        batching: Batching | None = None,
    ) -> None:
        """Take the VAEs.

        Args:
            cache: of the VAEs.
            memory_budget: bytes that a decode may take; by default what is free.
            batching: what it has learned of how many requests to serve together.
        """
        self._cache = cache
        self._memory_budget = memory_budget
        self._batching = batching or Batching()
        self._kind: Hashable = None
        self._waiting: deque[DeviceRequest] = deque()
        self._arrived = threading.Condition()
        self._watched: WeakSet[nn.Module] = WeakSet()
        self._batch: list[DeviceRequest] = []
        self._at_stake: list[threading.Event] = []
        self._steps = 0
        self._deadline_from: tuple[float, float | None] | None = None
        self.pulse = Pulse()
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def submit(self, request: DeviceRequest) -> None:
        """Queue a request. Its future gets a `DeviceResult`, or one of these errors.

        Raises:
            VaeLoadError: the VAE cannot be loaded.
            LatentsError: the latents do not fit it.
            DecodeError: decoding failed; `OutOfMemoryError` where it does not fit into memory.
            AbandonedError: the request was abandoned meanwhile.
        """
        with self._arrived:
            self._waiting.append(request)
            self._arrived.notify()

    def budget(self) -> int:
        """Count the bytes that a decode may take now."""
        return self._memory_budget or int(USABLE * self._cache.available())

    def overdue(self, deadline: float) -> str | None:
        """Say what is wrong if the device has been at one thing for too long, in seconds."""
        busy = self._deadline_from
        if busy is None:
            return None
        began, limit = busy
        seconds = time.monotonic() - began
        if seconds > (deadline if limit is None else limit):
            return f"one batch has kept the device for {seconds:.0f} s"
        if limit is None and self.pulse.still_for() > STALL_SECONDS:
            return f"no step of the decode in {self.pulse.still_for():.0f} s"
        return None

    def _run(self) -> None:
        heap = Heap()
        while True:
            batch = self._take()
            self._await_others(batch[0])
            with torch.inference_mode():
                self._serve(batch)
            heap.settle()

    def _take(self) -> list[DeviceRequest]:
        """Wait for a request, and take along as many that can be decoded with it as pays."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._waiting)
            first = self._waiting.popleft()
            batch, values = [first], first.tensor.numel()
            self._kind = (first.key, len(first.tensor))
            most = self._batching.most(self._kind)
            for request in [other for other in self._waiting if other.key == first.key]:
                if len(batch) < most and values + request.tensor.numel() <= MAX_BATCH_VALUES:
                    self._waiting.remove(request)
                    batch.append(request)
                    values += request.tensor.numel()
        return batch

    def _await_others(self, request: DeviceRequest) -> None:
        """Have nobody else's work at stake where a request is to be alone."""
        deadline = time.monotonic() + CLEAR_SECONDS
        if request.alone:
            for over in self._at_stake:
                over.wait(max(0.0, deadline - time.monotonic()))
        self._at_stake = [over for over in self._at_stake if not over.is_set()]

    def _serve(self, batch: list[DeviceRequest]) -> None:
        try:
            with self._busy(LOAD_SECONDS):
                vae = self._cache.get(batch[0].vae)
            batch = [request for request in batch if _fits(vae, request)]
            if batch:
                self._run_batch(vae, batch)
        except (VaeLoadError, DecodeError, AbandonedError) as error:
            _fail(batch, error)
        except Exception as error:  # noqa: BLE001 - whatever a model raises is its job's, not ours
            _log.warning("engine.decode_failed", vae=batch[0].vae.name, exc_info=error)
            _fail(batch, DecodeError(f"{type(error).__name__}: {error}"))

    def _run_batch(
        self, vae: LoadedVae, batch: list[DeviceRequest], *, scarce: bool = False
    ) -> None:
        started = time.perf_counter()
        made = self._try_model(vae, batch, scarce=scarce)
        if isinstance(made, str):
            self._run_with_less(vae, batch, made, scarce=scarce)
            return
        tensors, way = made
        seconds = time.perf_counter() - started
        if not scarce and not batch[0].alone:
            self._batching.learn(self._kind, len(batch), seconds)
        for request, tensor in zip(batch, tensors, strict=True):
            request.future.set_result(DeviceResult(tensor, vae, way, seconds))

    def _run_with_less(
        self, vae: LoadedVae, batch: list[DeviceRequest], shortage: str, *, scarce: bool
    ) -> None:
        """Go on where memory is short: drop VAEs, halve the batch, in the least pieces, give up."""
        if self._cache.keep_only(vae.entry.name):
            self._run_batch(vae, batch, scarce=scarce)
        elif len(batch) > 1:
            middle = len(batch) // 2
            self._serve(batch[:middle])
            self._serve(batch[middle:])
        elif batch[0].options.task is Task.DECODE and not scarce:
            self._run_batch(vae, batch, scarce=True)
        else:
            raise OutOfMemoryError(
                f"{_what(batch[0])} of shape {list(batch[0].tensor.shape)} do not fit into the "
                f"memory of {vae.device} with this VAE: {shortage}; send fewer or smaller pictures "
                "in one job"
            )

    def _try_model(self, vae: LoadedVae, batch: list[DeviceRequest], *, scarce: bool) -> Made | str:
        """Run the model; where memory is short, say by how much.

        The error is not handed on: its traceback would keep the tensors of the failed run alive.
        """
        try:
            return self._run_model(vae, batch, scarce=scarce)
        except (torch.OutOfMemoryError, DoesNotFitError) as error:
            _log.warning("engine.out_of_memory", vae=vae.entry.name, error=str(error))
            return str(error).partition("\n")[0]

    def _run_model(self, vae: LoadedVae, batch: list[DeviceRequest], *, scarce: bool) -> Made:
        task = batch[0].options.task
        self._watch(vae.module)
        self._batch, self._steps = batch, max(1, len(_layers(vae.module, task)))
        means = decoding.Means(self.budget(), scarce, self._expect, self._beat)
        try:
            with self._busy():
                for request in batch:
                    request.started.set()
                self._at_stake += [request.over for request in batch]
                failpoints.reach("attempt.decoding")
                tensor = torch.cat([request.tensor for request in batch])
                if task is Task.ENCODE:
                    made, way = decoding.encode(vae, tensor, batch[0].options)
                else:
                    made, way = decoding.decode(vae, tensor, batch[0].options, means)
                parts = torch.split(made, [len(request.tensor) for request in batch])
                rendered = [
                    decoding.render(part, request.rendering).cpu()
                    for request, part in zip(batch, parts, strict=True)
                ]
        finally:
            self._batch = []
        return rendered, way

    @contextmanager
    def _busy(self, limit: float | None = None) -> Iterator[None]:
        """Mark the time that the device is at something, at most for so many seconds."""
        self.pulse.beat()
        self._deadline_from = (time.monotonic(), limit)
        try:
            yield
        finally:
            self._deadline_from = None
            self.pulse.beat()

    def _watch(self, module: nn.Module) -> None:
        """Feel the pulse at every layer of the decoder."""
        if module in self._watched:
            return
        self._watched.add(module)
        for layer in (*_layers(module, Task.DECODE), *_layers(module, Task.ENCODE)):
            layer.register_forward_hook(self._beat)

    def _expect(self, parts: int, steps: int | None) -> None:
        self._steps = max(1, parts * (steps or self._steps))

    def _beat(self, *_: Any) -> None:
        self.pulse.beat()
        if self._batch and all(request.abandoned for request in self._batch):
            raise AbandonedError
        for request in self._batch:
            request.progress = min(0.99, request.progress + 1 / self._steps)


def _layers(module: nn.Module, task: Task) -> list[nn.Module]:
    """List the innermost modules of the decoder or the encoder."""
    part = getattr(module, "decoder" if task is Task.DECODE else "encoder", module)
    return [layer for layer in part.modules() if not any(layer.children())]


def _what(request: DeviceRequest) -> str:
    return "latents" if request.options.task is Task.DECODE else "pixels"


def _fits(vae: LoadedVae, request: DeviceRequest) -> bool:
    """Check a request; one that does not fit fails alone."""
    try:
        request.tensor = decoding.check(vae, request.tensor, request.options)
    except LatentsError as error:
        _fail([request], error)
        return False
    return True


def _fail(batch: list[DeviceRequest], error: Exception) -> None:
    for request in batch:
        request.started.set()
        if not request.future.done():
            request.future.set_exception(error)
