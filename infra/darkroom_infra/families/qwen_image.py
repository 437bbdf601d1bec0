"""Qwen-Image: tokens [B, S, 64] or [B, 16, h, w]; z * std + mean, through a video VAE.

The VAE works on one frame: a time axis is added before and taken away after it.
Source: diffusers `pipelines/qwenimage/pipeline_qwenimage.py`, `_unpack_latents` and the decoding
step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from darkroom_wire.jobs import JobOptions

from .base import Decoded, Normalization, Shape, VaeFacts, read_count, read_list
from .packed import PackedFamily
from .wan import ReciprocalNormalization

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class QwenImageFamily(PackedFamily):
    """As FLUX.1, but for the statistics and the time axis; [B, 16, 1, h, w] is taken too."""

    def facts(self, config: Mapping[str, Any]) -> VaeFacts:
        """Read the channels and count the downsampling steps."""
        steps = read_list(config, "temperal_downsample")  # the configuration spells it so
        return VaeFacts(read_count(config, "z_dim"), 2 ** len(steps))

    def normalization(
        self, config: Mapping[str, Any], mean: Tensor | None = None, std: Tensor | None = None
    ) -> Normalization:
        """There are only statistics."""
        del config
        return ReciprocalNormalization(mean=mean, std=std)

    def with_batch(self, shape: Shape, options: JobOptions, facts: VaeFacts) -> Shape:
        """Add the batch axis to tokens or to a grid, with a time axis or without."""
        if len(shape) == 4 and shape[:2] == (facts.latent_channels, 1):
            return (1, *shape)
        return super().with_batch(shape, options, facts)

    def plan(self, shape: Shape, options: JobOptions, facts: VaeFacts) -> Decoded:
        """Expect tokens with height and width, or a grid, with a time axis of 1 or without."""
        return super().plan(_without_time(shape), options, facts)

    def to_vae(
        self, latents: Tensor, options: JobOptions, facts: VaeFacts, normalization: Normalization
    ) -> Tensor:
        """Give [B, C, 1, h, w]."""
        latents = latents.reshape(_without_time(tuple(latents.shape)))
        return super().to_vae(latents, options, facts, normalization).unsqueeze(2)

    def decoded(self, decoded: Tensor) -> Tensor:
        """Take the only frame."""
        return decoded[:, :, 0]

    def pixels(self, pixels: Tensor) -> Tensor:
        """Add the time axis."""
        return pixels.unsqueeze(2)

    def from_vae(self, latents: Tensor, normalization: Normalization) -> Tensor:
        """Take the time axis away: [B, C, h, w]."""
        return normalization.apply(latents).squeeze(2)


def _without_time(shape: Shape) -> Shape:
    if len(shape) == 5 and shape[2] == 1:
        return (*shape[:2], *shape[3:])
    return shape


QWEN_IMAGE = QwenImageFamily("qwen-image")
