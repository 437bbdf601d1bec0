"""Decodes of shapes that repeat, as CUDA graphs: launched at once instead of step by step.

A decode in bands is some thousand small launches. Where a GPU is done with each before the host has
launched the next, it waits. A graph of them is recorded once and replayed with one launch; it costs
the memory of a decode for as long as it is kept. The worker does not use it: whether it pays has
not been measured on a GPU yet.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from darkroom_infra.telemetry import get_logger

from .decoder import BandedDecoder
from .memory import Mode

GRAPHS = 4
"""At most so many graphs are kept."""

SIGHTINGS = 2
"""A graph is recorded when a shape comes for this time: what comes once is not worth it."""

SHAPES = 1000
"""Of so many shapes it is remembered how often they came."""

Key = tuple[tuple[int, ...], Mode]

_log = get_logger("worker.banded")


@dataclass(frozen=True)
class Recording:
    """A recorded decode: `replay` decodes what is in `latents` and leaves it in `pictures`."""

    latents: Tensor
    pictures: Tensor
    replay: Callable[[], None]
    nbytes: int


class Recorder(Protocol):
    """Records what a function does with some latents."""

    def __call__(self, decode: Callable[[Tensor], Tensor], z: Tensor) -> Recording:
        """Record it.

        Raises:
            RuntimeError: it cannot be recorded.
        """


class GraphedDecoder:
    """Decodes as a `BandedDecoder`; shapes that repeat are recorded and replayed.

    Graphs read the VAE's weights where they were: it must not be moved meanwhile. One thread at a
    time may decode.
    """

    def __init__(
        self,
        decoder: BandedDecoder,
        budget: int,
        graphs: int = GRAPHS,
        record: Recorder | None = None,
    ) -> None:
        """Take a decoder.

        Args:
            decoder: of a VAE on a CUDA device.
            budget: how many bytes all graphs together may keep.
            graphs: how many graphs may be kept; the least recently used goes first.
            record: records a decode; by default as a CUDA graph.
        """
        self._decoder = decoder
        self._budget = budget
        self._most = graphs
        self._record = record or record_cuda
        self._seen: Counter[Key] = Counter()
        self._kept: OrderedDict[Key, Recording] = OrderedDict()
        self._refused: set[Key] = set()

    @property
    def nbytes(self) -> int:
        """The bytes that the graphs keep."""
        return sum(recording.nbytes for recording in self._kept.values())

    def __len__(self) -> int:
        """Count the graphs that are kept."""
        return len(self._kept)

    @torch.inference_mode()
    def decode(
        self, z: Tensor, mode: Mode = Mode.BALANCED, on_step: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Decode latents, [B, C, h, w]. A replay's steps are all told before it begins."""
        recording = self._find(z, mode)
        if recording is None:
            return self._decoder.decode(z, mode, on_step)
        for _ in range(self._decoder.steps(tuple(z.shape), mode)):
            on_step()
        recording.latents.copy_(z)
        recording.replay()
        return recording.pictures.clone()

    def clear(self) -> None:
        """Let go of all graphs."""
        self._kept.clear()

    def _find(self, z: Tensor, mode: Mode) -> Recording | None:
        """Give the recording for such latents, made now if it is time to and there is room."""
        key = tuple(z.shape), mode
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if len(self._seen) >= SHAPES:
            self._seen.clear()
        self._seen[key] += 1
        if self._seen[key] < SIGHTINGS or key in self._refused or not self._make_room(key):
            return None
        try:
            self._kept[key] = self._record(lambda latents: self._decoder.decode(latents, mode), z)
        except RuntimeError as error:  # out of memory is one, too: without graphs it may suffice
            _log.warning("banded.not_recorded", shape=key[0], mode=mode.value, error=str(error))
            self._refused.add(key)
            self.clear()
            return None
        return self._kept[key]

    def _make_room(self, key: Key) -> bool:
        """Let go of the graphs that were not used for longest, until another is within bounds."""
        needed = self._decoder.predicted_bytes(*key)
        if needed > self._budget or self._most < 1:
            return False
        while self._kept and (len(self) >= self._most or self.nbytes + needed > self._budget):
            self._kept.popitem(last=False)
        return True


def record_cuda(decode: Callable[[Tensor], Tensor], z: Tensor) -> Recording:
    """Record a decode as a CUDA graph, with memory of its own.

    Raises:
        RuntimeError: something in it cannot be recorded.
    """
    with torch.cuda.device(z.device):
        latents = z.clone(memory_format=torch.contiguous_format)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            decode(latents)  # compiles kernels, and has libraries make what they keep
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        graph = torch.cuda.CUDAGraph()
        # Other threads may use CUDA meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            pictures = decode(latents)
        kept = torch.cuda.memory_reserved() - before
    return Recording(latents, pictures, graph.replay, kept + latents.nbytes)
