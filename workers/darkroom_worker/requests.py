"""What waits for the device, what becomes of it, and what may go wrong."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from darkroom_infra.catalog import VaeEntry
from darkroom_infra.records import Rendering
from darkroom_wire.jobs import JobOptions, Scaling

from .decoding import Way
from .loading import LoadedVae


class DecodeError(Exception):
    """A decode that failed, with the reason."""


class OutOfMemoryError(DecodeError):
    """A single request that does not fit into the device's memory."""


class AbandonedError(Exception):
    """Nobody waits for the result any more."""


RequestKey = tuple[object, ...]


@dataclass(eq=False)
class DeviceRequest:
    """What waits for the device: latents as they were submitted, [B, …], or pixels to encode.

    `alone` keeps it apart from others: the device is at nothing else meanwhile, and begins with it
    when those that it began before are over. `undivided` gives it all cores and all memory.
    `started` is set once the device has begun with it or has refused it, and `over` by who
    submitted it, once nothing of it is lost with the process.
    """

    vae: VaeEntry
    tensor: Tensor
    options: JobOptions
    rendering: Rendering = Rendering.DECODED
    alone: bool = False
    undivided: bool = False
    future: Future[DeviceResult] = field(default_factory=Future)
    started: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    progress: float = 0.0
    abandoned: bool = False

    @property
    def is_apart(self) -> bool:
        """Whether it is served without any other."""
        return self.alone or self.undivided

    @property
    def key(self) -> RequestKey:
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
            id(self) if self.is_apart else None,
        )


@dataclass(frozen=True)
class DeviceResult:
    """What came of a request: a decoded tensor as it was asked for, or latents.

    `seconds` is the time that the device took for all requests of one batch.
    """

    tensor: Tensor
    vae: LoadedVae
    way: Way
    seconds: float
