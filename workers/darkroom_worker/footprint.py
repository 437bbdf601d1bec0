"""What a decode in one piece takes, found by going through it with tensors that have no memory.

On PyTorch's `meta` device every operation gives tensors of the right shape and dtype and computes
nothing. How many bytes would be alive at once can be counted meanwhile, whatever the VAE does.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from darkroom_infra.telemetry import get_logger

from . import heap

HEAP_BYTES = 40 << 20
"""Measured: what the C library's heap and oneDNN hold on a CPU beside the tensors in use."""

CONVOLUTIONS = ("conv2d", "conv3d", "convolution")

OVERWRITING = frozenset(
    ("add_", "clamp_", "clamp_min_", "copy_", "div_", "fill_", "mul_", "relu_", "silu_", "zero_")
)
"""What writes into a tensor that is there, of its own shape."""

_log = get_logger("worker.footprint")


class Footprint(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the most bytes that tensors hold at once which are made while it is active.

    On a CPU, what is smaller than `heap.LARGE` lies in the C library's heap, which gives nothing
    back: there the peaks of the small and of the large tensors add up, whenever each was. And
    oneDNN convolves in a layout of its own: first there is a copy of the input and one of the
    weights, then a copy of the output. Other devices reuse all memory, and what their libraries
    need for convolutions is not known here.
    """

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_cpu = device == "cpu"
        self._known: set[int] = set()
        self._small = _Pool()
        self._large = _Pool()

    @property
    def peak(self) -> int:
        """The bytes."""
        return self._small.peak + self._large.peak

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Carry out an operation, and count what it makes."""
        del types
        written = _written(func.overloadpacket.__name__, args, kwargs or {})
        if written is not None and written.is_meta:
            return written  # PyTorch would take most of the time to find that nothing is to be done
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        if self._on_cpu and func.overloadpacket.__name__ in CONVOLUTIONS:
            source, weight = args[:2]
            self._pass_by(source.nbytes, weight.nbytes)
            self._pass_by(made.nbytes)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()  # noqa: SLF001 - what identifies it
        if key not in self._known:
            self._known.add(key)
            self._pool(size).hold(size)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._pool(size).let_go(size)

    def _pass_by(self, *sizes: int) -> None:
        """Count what an operation holds only while it runs."""
        for size in sizes:
            self._pool(size).hold(size)
        for size in sizes:
            self._pool(size).let_go(size)

    def _pool(self, size: int) -> _Pool:
        return self._small if self._on_cpu and size < heap.LARGE else self._large


def _written(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Give the tensor that an operation writes to instead of making one."""
    written: Tensor | None = args[0] if name in OVERWRITING else kwargs.get("out")
    return written


class _Pool:
    """Bytes that are held now, and the most that were."""

    def __init__(self) -> None:
        self.held = 0
        self.peak = 0

    def hold(self, size: int) -> None:
        self.held += size
        self.peak = max(self.peak, self.held)

    def let_go(self, size: int) -> None:
        self.held -= size


def hollow(vae: Any) -> Any:
    """Make the same VAE without memory for its weights."""
    with torch.device("meta"):
        made = type(vae).from_config(vae.config).eval()
    weights: Mapping[str, Tensor] = vae.state_dict()
    weightless = {name: value.to("meta") for name, value in weights.items()}
    made.load_state_dict(weightless, strict=False, assign=True)
    if hasattr(vae, "use_framewise_decoding"):
        made.use_framewise_decoding = vae.use_framewise_decoding
    return made


def held_in_pieces(
    decode: Callable[[Tensor], object], shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> int:
    """Count the bytes that a decode in pieces holds at most on a device, its result among them.

    `decode` is that of a hollow VAE, and is called with latents of the shape.
    """
    latents = torch.empty(shape, dtype=dtype, device="meta")
    with Footprint(device) as footprint:
        decode(latents)
    peak: int = footprint.peak
    return peak + (HEAP_BYTES if device == "cpu" else 0)


@dataclass(frozen=True)
class Prediction:
    """What a decode takes at most, its result counted in and its latents not; the result's own."""

    peak_bytes: int
    result_bytes: int
    shape: tuple[int, ...]


class WholeDecode:
    """Predicts what `vae.decode` takes beyond the weights, without computing anything.

    `arguments` gives what `decode` takes after the latents. How far the prediction was from what
    was measured stands in `docs/performance.md`.
    """

    def __init__(self, vae: nn.Module, arguments: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        self._vae = vae
        self._arguments = arguments
        # Some VAEs keep the frames before in attributes: one decode at a time.
        self._lock = threading.Lock()
        self.predict: Callable[[tuple[int, ...]], Prediction | None] = lru_cache(256)(self._predict)
        """Predict for latents of a shape [B, C, …]; None where nobody knows."""

    @cached_property
    def _hollow(self) -> Any:
        return hollow(self._vae)

    def _predict(self, shape: tuple[int, ...]) -> Prediction | None:
        weight = next(self._vae.parameters())
        latents = torch.empty(shape, dtype=weight.dtype, device="meta")
        try:
            with self._lock, torch.inference_mode():
                vae = self._hollow  # before anything is counted: its weights are none of ours
                with Footprint(weight.device.type) as footprint:
                    made: Tensor = vae.decode(
                        latents, *self._arguments(latents), return_dict=False
                    )[0]
        except (RuntimeError, ValueError, TypeError) as error:
            # An operation that needs values, or that is not there for `meta`.
            _log.warning("footprint.unknown", vae=type(self._vae).__name__, error=str(error))
            return None
        return Prediction(footprint.peak, made.nbytes, tuple(made.shape))
