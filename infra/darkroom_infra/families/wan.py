"""Wan 2.1 and 2.2: [B, 16 or 48, T, h, w]; z * std + mean, without any factor.

Source: diffusers `pipelines/wan/pipeline_wan.py`, the decoding step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .base import Normalization, VaeFacts, along_channels, read_count
from .video import VideoFamily

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ReciprocalNormalization(Normalization):
    """Statistics as these pipelines use them: z / (1 / std) + mean, and (z - mean) * (1 / std).

    In exact arithmetic that is z * std + mean; in half precision it rounds otherwise.
    """

    def undo(self, latents: Tensor) -> Tensor:
        """Go from the diffusion model's latents to the VAE's."""
        if self.mean is None or self.std is None:
            return super().undo(latents)
        reciprocal = 1.0 / along_channels(self.std, latents)
        return latents / reciprocal + along_channels(self.mean, latents)

    def apply(self, latents: Tensor) -> Tensor:
        """Go from the VAE's latents to the diffusion model's."""
        if self.mean is None or self.std is None:
            return super().apply(latents)
        reciprocal = 1.0 / along_channels(self.std, latents)
        return (latents - along_channels(self.mean, latents)) * reciprocal


@dataclass(frozen=True)
class WanFamily(VideoFamily):
    """The channels tell 2.1 from 2.2; the transformer works on squares of 2 x 2 latents."""

    fps: ClassVar[float | None] = 16.0
    patch: ClassVar[int] = 2

    def facts(self, config: Mapping[str, Any]) -> VaeFacts:
        """Read the channels and both factors; the configuration of 2.1 leaves its factors out."""
        factors = {"scale_factor_spatial": 8, "scale_factor_temporal": 4} | dict(config)
        return VaeFacts(
            read_count(config, "z_dim"),
            read_count(factors, "scale_factor_spatial"),
            read_count(factors, "scale_factor_temporal"),
        )

    def latent_frames(self, frames: int, facts: VaeFacts) -> int:
        """A multiple of the factor is rounded up, anything else down."""
        return frames // facts.temporal_factor + 1

    def normalization(
        self, config: Mapping[str, Any], mean: Tensor | None = None, std: Tensor | None = None
    ) -> Normalization:
        """There are only statistics."""
        del config
        return ReciprocalNormalization(mean=mean, std=std)


WAN = WanFamily("wan")
