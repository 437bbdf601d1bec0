"""What the engine asks of a decoder that is exact and takes less than a decode in one piece."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final, Protocol, TypeVar

from torch import Tensor

EXACT_STREAMED: Final = "exact-streamed"

ModeT = TypeVar("ModeT", bound=StrEnum)


class ExactDecoder(Protocol[ModeT]):
    """Decodes as `vae.decode` does, in another order. `BandedDecoder` and `TinyDecoder` do too."""

    @property
    def method(self) -> str:
        """Its name in the provenance of a job."""
        ...

    def modes(self, shape: tuple[int, ...]) -> tuple[ModeT, ...]:
        """Name the modes that differ for latents of a shape, the best first."""
        ...

    def applies(self, shape: tuple[int, ...]) -> bool:
        """Tell whether it gives the pipeline's pictures for latents of a shape."""
        ...

    def is_faster(self, shape: tuple[int, ...]) -> bool:
        """Tell whether it is faster than a decode in one piece."""
        ...

    def decode(self, z: Tensor, mode: ModeT, on_step: Callable[[], None]) -> Tensor:
        """Decode latents."""
        ...

    def steps(self, shape: tuple[int, ...], mode: ModeT) -> int:
        """Count the steps of a decode."""
        ...

    def predicted_bytes(self, shape: tuple[int, ...], mode: ModeT) -> int:
        """Predict the peak of memory beyond the weights, with the result."""
        ...
