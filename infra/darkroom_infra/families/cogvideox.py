"""CogVideoX: [B, T, 16, h, w], frames before channels; z / scaling_factor.

CogVideoX 1.5 generates in patches along time and pads latent frames in front: `num_frames` says how
many there are without them. Source: diffusers `pipelines/cogvideo/pipeline_cogvideox.py`,
`decode_latents` and the decoding step; the number of frames: `AutoencoderKLCogVideoX._decode`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from darkroom_wire.jobs import JobOptions

from .base import Normalization, Shape, VaeFacts, read_count, read_list, refuse
from .video import VideoFamily

if TYPE_CHECKING:
    from torch import Tensor

TIME_PATCH = 2
"""CogVideoX 1.5 generates so many latent frames at once: where one is left over, one is padded."""


@dataclass(frozen=True)
class CogVideoXNormalization(Normalization):
    """The factor as the pipeline uses it: (1 / scale) * z rounds otherwise than z / scale."""

    def undo(self, latents: Tensor) -> Tensor:
        """Go from the diffusion model's latents to the VAE's."""
        if self.shift or self.mean is not None:
            return super().undo(latents)
        return 1 / self.scale * latents


@dataclass(frozen=True)
class CogVideoXFamily(VideoFamily):
    """Takes [B, T, C, h, w] as the pipeline gives it and, where T is not C, [B, C, T, h, w]."""

    fps: ClassVar[float | None] = 8.0

    def facts(self, config: Mapping[str, Any]) -> VaeFacts:
        """Read the channels and the ratio in time, and count the upsampling steps."""
        return VaeFacts(
            read_count(config, "latent_channels"),
            2 ** (len(read_list(config, "block_out_channels")) - 1),
            read_count(config, "temporal_compression_ratio"),
        )

    def normalization(
        self, config: Mapping[str, Any], mean: Tensor | None = None, std: Tensor | None = None
    ) -> Normalization:
        """There is only a factor."""
        del mean, std
        return CogVideoXNormalization(config.get("scaling_factor") or 1.0)

    def with_batch(self, shape: Shape, options: JobOptions, facts: VaeFacts) -> Shape:
        """Add the batch axis to [T, C, h, w] or [C, T, h, w]."""
        del options
        lacks = len(shape) == self.dimensions - 1 and facts.latent_channels in shape[:2]
        return (1, *shape) if lacks else shape

    def frames(self, length: int, facts: VaeFacts) -> int:
        """Only an odd number of latent frames begins with one that stays single."""
        if length % 2:
            return super().frames(length, facts)
        return length * facts.temporal_factor

    def to_vae(
        self, latents: Tensor, options: JobOptions, facts: VaeFacts, normalization: Normalization
    ) -> Tensor:
        """Drop the padding and give [B, C, T, h, w]."""
        grid = self.grid(tuple(latents.shape), options, facts)
        if self._frames_first(tuple(latents.shape), facts):
            latents = latents.permute(0, 2, 1, 3, 4)
        padding = latents.shape[2] - grid[2]
        return super().to_vae(latents[:, :, padding:], options, facts, normalization)

    def from_vae(self, latents: Tensor, normalization: Normalization) -> Tensor:
        """Give [B, T, C, h, w]."""
        return normalization.apply(latents).permute(0, 2, 1, 3, 4)

    def grid(self, shape: Shape, options: JobOptions, facts: VaeFacts) -> Shape:
        """Put the channels first, and leave out what `num_frames` shows to be padding."""
        if len(shape) != self.dimensions or facts.latent_channels not in shape[1:3]:
            channels = facts.latent_channels
            raise refuse(
                "latents",
                f"this VAE takes {channels} channels, [batch, frames, {channels}, height, width], "
                f"but shape {list(shape)} came",
            )
        count, first, second, rows, columns = shape
        channels, length = (second, first) if self._frames_first(shape, facts) else (first, second)
        if options.num_frames is not None:
            expected = self.latent_frames(options.num_frames, facts)
            if length == expected + expected % TIME_PATCH:
                length = expected
        return (count, channels, length, rows, columns)

    def _frames_first(self, shape: Shape, facts: VaeFacts) -> bool:
        return shape[2] == facts.latent_channels


COGVIDEOX = CogVideoXFamily("cogvideox")
