"""What the engine asks of a decoder that is exact and takes less than a decode in one piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from torch import Tensor

from darkroom_worker.banded import Mode

EXACT_STREAMED: Final = "exact-streamed"


class ExactDecoder(Protocol):
    """Decodes as `vae.decode` does, in another order. `BandedDecoder` and `TinyDecoder` do too."""

    @property
    def method(self) -> str:
        """Its name in the provenance of a job."""
        ...

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes that differ, the fastest first."""
        ...

    def applies(self, shape: tuple[int, ...]) -> bool:
        """Tell whether it gives the pipeline's pictures for latents of a shape."""
        ...

    def is_faster(self, shape: tuple[int, ...]) -> bool:
        """Tell whether it is faster than a decode in one piece."""
        ...

    def decode(self, z: Tensor, mode: Mode, on_step: Callable[[], None]) -> Tensor:
        """Decode latents."""
        ...

    def steps(self, shape: tuple[int, ...], mode: Mode) -> int:
        """Count the steps of a decode."""
        ...

    def predicted_bytes(self, shape: tuple[int, ...], mode: Mode) -> int:
        """Predict the peak of memory beyond the weights, with the result."""
        ...
