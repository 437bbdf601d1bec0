"""Videos from latents laid out as [B, C, T, h, w]: what their families share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from darkroom_wire.jobs import Format, JobOptions

from .base import (
    RGB,
    Decoded,
    Family,
    Normalization,
    Shape,
    VaeFacts,
    read_count,
    refuse,
)

if TYPE_CHECKING:
    from torch import Tensor

VIDEO_FORMATS = (Format.MP4, Format.WEBP, Format.PNG, Format.JPEG, Format.SAFETENSORS)


@dataclass(frozen=True)
class VideoFamily(Family):
    """A causal VAE: the first latent frame becomes one frame, each other `temporal_factor`."""

    formats: ClassVar[tuple[Format, ...]] = VIDEO_FORMATS
    dimensions: ClassVar[int] = 5

    def facts(self, config: Mapping[str, Any]) -> VaeFacts:
        """Read the channels and both compression ratios."""
        return VaeFacts(
            read_count(config, "latent_channels"),
            read_count(config, "spatial_compression_ratio"),
            read_count(config, "temporal_compression_ratio"),
        )

    def plan(self, shape: Shape, options: JobOptions, facts: VaeFacts) -> Decoded:
        """Expect [B, C, T, h, w], or a layout of the family's that becomes it."""
        grid = self.grid(shape, options, facts)
        self.check_grid(grid, facts, "frames, height, width")
        count, _, length, rows, columns = grid
        frames = self.frames(length, facts)
        factor = facts.spatial_factor
        decoded = Decoded(count, rows * factor, columns * factor, frames)
        self.check_size(decoded, shape, options, facts)
        self.check_frames(length, shape, options, facts)
        return decoded

    def grid(self, shape: Shape, options: JobOptions, facts: VaeFacts) -> Shape:
        """Give the shape [B, C, T, h, w] that latents become; any other shape as it is."""
        del options, facts
        return shape

    def frames(self, length: int, facts: VaeFacts) -> int:
        """Say how many frames so many latent frames become."""
        return (length - 1) * facts.temporal_factor + 1

    def latent_frames(self, frames: int, facts: VaeFacts) -> int:
        """Say how many latent frames the pipelines generate for so many frames."""
        return (frames - 1) // facts.temporal_factor + 1

    def check_frames(self, length: int, shape: Shape, options: JobOptions, facts: VaeFacts) -> None:
        """Check the number of latent frames against the frames that were asked for.

        Raises:
            LatentsError: another number was asked for.
        """
        if options.num_frames is None:
            return
        expected = self.latent_frames(options.num_frames, facts)
        if length != expected:
            raise refuse(
                "num_frames",
                f"latents of shape {list(shape)} have {length} latent frames and give "
                f"{self.frames(length, facts)} frames; {options.num_frames} frames are "
                f"{expected} latent frames",
            )

    def plan_encode(self, shape: Shape, facts: VaeFacts) -> Shape:
        """Expect [B, 3, F, H, W], or [B, 3, H, W] for a picture, a video of one frame."""
        if len(shape) not in (4, 5) or shape[1] != RGB:
            raise refuse(
                "picture",
                f"[batch, 3, frames, height, width] or [batch, 3, height, width] expected, not "
                f"{list(shape)}",
            )
        count, height, width = shape[0], shape[-2], shape[-1]
        frames = shape[2] if len(shape) == 5 else 1
        self.check_sides(height, width, facts)
        length = (frames - 1) // facts.temporal_factor + 1
        if self.frames(length, facts) != frames:
            raise refuse(
                "picture",
                f"this VAE encodes {self.frames(length, facts)} or "
                f"{self.frames(length + 1, facts)} frames, not {frames}",
            )
        factor = facts.spatial_factor
        return (count, facts.latent_channels, length, height // factor, width // factor)

    def pixels(self, pixels: Tensor) -> Tensor:
        """Make a picture a video of one frame."""
        return pixels.unsqueeze(2) if pixels.ndim == 4 else pixels


@dataclass(frozen=True)
class PackedVideoFamily(VideoFamily):
    """Tokens [B, S, C], one for each latent, or [B, C, T, h, w]."""

    packed: ClassVar[bool] = True

    def with_batch(self, shape: Shape, options: JobOptions, facts: VaeFacts) -> Shape:
        """Add the batch axis to tokens or to a grid."""
        return (1, *shape) if len(shape) == 2 else super().with_batch(shape, options, facts)

    def to_vae(
        self, latents: Tensor, options: JobOptions, facts: VaeFacts, normalization: Normalization
    ) -> Tensor:
        """Unpack tokens; a grid stays as it is."""
        shape = tuple(latents.shape)
        grid = self.grid(shape, options, facts)
        if grid != shape:
            count, channels, length, rows, columns = grid
            latents = latents.reshape(count, length, rows, columns, channels)
            latents = latents.permute(0, 4, 1, 2, 3)
        return super().to_vae(latents, options, facts, normalization)

    def grid(self, shape: Shape, options: JobOptions, facts: VaeFacts) -> Shape:
        """Expect tokens with height, width and maybe num_frames; any other shape stays."""
        if len(shape) != 3:
            return shape
        count, tokens, channels = shape
        if channels != facts.latent_channels:
            raise refuse(
                "latents",
                f"packed latents of this VAE have {facts.latent_channels} channels, [batch, "
                f"tokens, {facts.latent_channels}], but shape {list(shape)} came",
            )
        if options.height is None or options.width is None:
            raise refuse("height", "packed latents need height and width in pixels")
        factor = facts.spatial_factor
        rows, columns = options.height // factor, options.width // factor
        area = rows * columns
        length = (
            self.latent_frames(options.num_frames, facts)
            if options.num_frames is not None
            else tokens // max(1, area)
        )
        if not tokens or tokens != length * area:
            raise refuse(
                "height" if options.num_frames is None else "num_frames",
                f"packed: {options.height} x {options.width} pixels are {rows} x {columns} "
                f"latents of {factor} x {factor} pixels for each of {length} latent frames, "
                f"{math.prod((length, rows, columns))} in all, but {tokens} came",
            )
        return (count, channels, length, rows, columns)
