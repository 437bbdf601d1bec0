"""The engine: it owns the device, and serves requests of one kind as a batch or side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from darkroom_infra import failpoints
from darkroom_infra.families import LatentsError
from darkroom_infra.telemetry import get_logger
from darkroom_wire.jobs import Task

from . import decoding
from .batching import Batching
from .cache import VaeCache
from .heap import Heap
from .loading import LoadedVae, VaeLoadError
from .planning import DoesNotFitError
from .requests import AbandonedError, DecodeError, DeviceRequest, DeviceResult, OutOfMemoryError
from .turns import Pulse, Turn, Turns

LOAD_SECONDS = 1800.0
"""How long loading a VAE, maybe from the hub, may take."""

STALL_SECONDS = 120.0
"""How long one layer may take: after so long without a step a decode is taken to hang."""

CLEAR_SECONDS = 30.0
"""How long a request that is to be alone waits for what was decoded before to be stored."""

USABLE = 0.8
"""The part of the free memory that a decode may count on."""

_log = get_logger("worker.engine")


class Engine:
    """Owns the device. `submit` may be called from any thread; everything else runs in its own."""

    def __init__(
        self,
        cache: VaeCache,
        memory_budget: int | None = None,
        batching: Batching | None = None,
        lanes: int = 1,
    ) -> None:
        """Take the VAEs.

        Args:
            cache: of the VAEs.
            memory_budget: bytes that a decode may take; by default what is free.
            batching: what it has learned of how many requests to serve together.
            lanes: how many batches of a kind to serve side by side: on a CPU, which is shared, as
                many as it has cores.
        """
        self._cache = cache
        self._memory_budget = memory_budget
        self._turns = Turns(lanes, batching or Batching())
        self._cores = torch.get_num_threads()
        self._heap = Heap()
        self._watched: WeakSet[nn.Module] = WeakSet()
        self._at_stake: list[threading.Event] = []
        self._shared = threading.Lock()  # the cache, what is watched, what is at stake
        self._here = threading.local()
        self.pulse = Pulse()
        for lane in range(lanes):
            name = f"engine-{lane}"
            threading.Thread(target=self._run, args=(lane,), name=name, daemon=True).start()

    def submit(self, request: DeviceRequest) -> None:
        """Queue a request. Its future gets a `DeviceResult`, or one of these errors.

        Raises:
            VaeLoadError: the VAE cannot be loaded.
            LatentsError: the latents do not fit it.
            DecodeError: decoding failed; `OutOfMemoryError` where it does not fit into memory.
            AbandonedError: the request was abandoned meanwhile.
        """
        self._turns.add(request)

    def budget(self) -> int:
        """Count the bytes that decodes may take now."""
        return self._memory_budget or int(USABLE * self._cache.available())

    def overdue(self, deadline: float) -> str | None:
        """Say what is wrong if the device has been at one thing for too long, in seconds."""
        for turn in self._turns.under_way():
            since, still = turn.since, turn.pulse.still_for()
            if since is None:
                continue
            began, limit = since
            seconds = time.monotonic() - began
            if seconds > (deadline if limit is None else limit):
                return f"one batch has kept the device for {seconds:.0f} s"
            if limit is None and still > STALL_SECONDS:
                return f"no step of the decode in {still:.0f} s"
        return None

    def _run(self, lane: int) -> None:
        while True:
            turn = self._turns.take(lane)
            self._here.turn = turn
            self._await_others(turn.batch[0])
            cores = max(1, self._cores // turn.width)
            if torch.get_num_threads() != cores:  # each thread has its own number
                torch.set_num_threads(cores)
            with torch.inference_mode():
                self._serve(turn, turn.batch)
            if self._turns.end(turn):
                self._heap.settle()

    def _await_others(self, request: DeviceRequest) -> None:
        """Have nobody else's work at stake where a request is to be alone."""
        deadline = time.monotonic() + CLEAR_SECONDS
        if request.alone:
            for over in self._at_stake:
                over.wait(max(0.0, deadline - time.monotonic()))
        with self._shared:
            self._at_stake = [over for over in self._at_stake if not over.is_set()]

    def _serve(self, turn: Turn, batch: list[DeviceRequest]) -> None:
        try:
            with self._busy(turn, LOAD_SECONDS), self._shared:
                vae = self._cache.get(batch[0].vae)
            batch = [request for request in batch if _fits(vae, request)]
            if batch and turn.width > 1 and vae.has_frames:
                self._insist(batch)
            elif batch:
                self._run_batch(turn, vae, batch)
        except (VaeLoadError, DecodeError, AbandonedError) as error:
            _fail(batch, error)
        except Exception as error:  # noqa: BLE001 - whatever a model raises is its job's, not ours
            _log.warning("engine.decode_failed", vae=batch[0].vae.name, exc_info=error)
            _fail(batch, DecodeError(f"{type(error).__name__}: {error}"))

    def _insist(self, batch: list[DeviceRequest]) -> None:
        """Have requests wait, each until it has the whole device."""
        for request in batch:
            request.undivided = True
            self._turns.add(request, first=True)

    def _run_batch(
        self, turn: Turn, vae: LoadedVae, batch: list[DeviceRequest], *, scarce: bool = False
    ) -> None:
        started = time.perf_counter()
        shortage = self._try_model(turn, vae, batch, scarce=scarce)
        if shortage is not None:
            self._run_with_less(turn, vae, batch, shortage, scarce=scarce)
        elif not scarce and not batch[0].is_apart:
            self._turns.learn(turn, len(batch), time.perf_counter() - started)

    def _run_with_less(
        self,
        turn: Turn,
        vae: LoadedVae,
        batch: list[DeviceRequest],
        shortage: str,
        *,
        scarce: bool,
    ) -> None:
        """Go on where memory is short.

        Do not share it, drop VAEs, halve the batch, decode in the least pieces, give up.
        """
        if turn.width > 1:
            self._insist(batch)
        elif self._cache.keep_only(vae.entry.name):
            self._run_batch(turn, vae, batch, scarce=scarce)
        elif len(batch) > 1:
            middle = len(batch) // 2
            self._serve(turn, batch[:middle])
            self._serve(turn, batch[middle:])
        elif batch[0].options.task is Task.DECODE and not scarce:
            self._run_batch(turn, vae, batch, scarce=True)
        else:
            raise OutOfMemoryError(
                f"{_what(batch[0])} of shape {list(batch[0].tensor.shape)} do not fit into the "
                f"memory of {vae.device} with this VAE: {shortage}; send fewer or smaller pictures "
                "in one job"
            )

    def _try_model(
        self, turn: Turn, vae: LoadedVae, batch: list[DeviceRequest], *, scarce: bool
    ) -> str | None:
        """Run the model and hand out the results; where memory is short, say by how much.

        The error is not handed on: its traceback would keep the tensors of the failed run alive.
        """
        try:
            self._run_model(turn, vae, batch, scarce=scarce)
        except (torch.OutOfMemoryError, DoesNotFitError) as error:
            _log.warning("engine.out_of_memory", vae=vae.entry.name, error=str(error))
            return str(error).partition("\n")[0]
        return None

    def _run_model(
        self, turn: Turn, vae: LoadedVae, batch: list[DeviceRequest], *, scarce: bool
    ) -> None:
        started = time.perf_counter()
        options = batch[0].options
        self._watch(vae.module)
        turn.batch, layers = batch, max(1, len(_layers(vae.module, options.task)))
        turn.steps = layers

        def expect(parts: int, steps: int | None) -> None:
            turn.steps = max(1, parts * (steps or layers))

        means = decoding.Means(self.budget() // turn.width, scarce, expect, self._beat)
        with self._busy(turn):
            for request in batch:
                request.started.set()
            with self._shared:
                self._at_stake += [request.over for request in batch]
            failpoints.reach("attempt.decoding")
            tensor = torch.cat([request.tensor for request in batch])
            if options.task is Task.ENCODE:
                made, way = decoding.encode(vae, tensor, options)
            else:
                made, way = decoding.decode(vae, tensor, options, means)
            parts = torch.split(made, [len(request.tensor) for request in batch])
            rendered = [
                decoding.render(part, request.rendering).cpu()
                for request, part in zip(batch, parts, strict=True)
            ]
        seconds = time.perf_counter() - started
        for request, result in zip(batch, rendered, strict=True):
            request.future.set_result(DeviceResult(result, vae, way, seconds))

    @contextmanager
    def _busy(self, turn: Turn, limit: float | None = None) -> Iterator[None]:
        """Mark the time that a lane is at something, at most for so many seconds."""
        self._note_step(turn)
        turn.since = (time.monotonic(), limit)
        try:
            yield
        finally:
            turn.since = None
            self._note_step(turn)

    def _watch(self, module: nn.Module) -> None:
        """Feel the pulse at every layer of the decoder."""
        with self._shared:
            if module in self._watched:
                return
            self._watched.add(module)
            for layer in (*_layers(module, Task.DECODE), *_layers(module, Task.ENCODE)):
                layer.register_forward_hook(self._beat)

    def _beat(self, *_: Any) -> None:
        """Take a step of this thread's turn."""
        turn: Turn = self._here.turn
        self._note_step(turn)
        if turn.since and all(request.abandoned for request in turn.batch):
            raise AbandonedError
        for request in turn.batch:
            request.progress = min(0.99, request.progress + 1 / turn.steps)

    def _note_step(self, turn: Turn) -> None:
        turn.pulse.beat()
        self.pulse.beat()


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
