"""Latents packed as a sequence of tokens, [B, S, 4·C], a square of 2 x 2 latents in each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from darkroom_wire.jobs import JobOptions

from .base import Decoded, Family, LatentsError, Normalization, Shape, VaeFacts, refuse

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PackedFamily(Family):
    """Takes tokens [B, S, 4·C] with the picture's size, and grids [B, C, h, w].

    Either may come without the batch axis. Three lengths can be both: tokens, or one grid of a
    single picture. They are taken as the grid where the first length is the VAE's channels, unless
    the size that was asked for has just as many tokens.
    """

    packed: ClassVar[bool] = True
    patch: ClassVar[int] = 2

    def with_batch(self, shape: Shape, options: JobOptions, facts: VaeFacts) -> Shape:
        """Add the batch axis to tokens or to a grid."""
        if self._lacks_batch(shape, options, facts):
            return (1, *shape)
        return shape

    def plan(self, shape: Shape, options: JobOptions, facts: VaeFacts) -> Decoded:
        """Expect tokens with height and width, or a grid."""
        if len(shape) != 3:
            return super().plan(shape, options, facts)
        count, tokens, channels = shape
        if channels != facts.latent_channels * self.patch**2:
            raise self._wrong_channels(shape, facts)
        side = self.side(facts)
        fitting = (
            f"{_example(tokens, side)}another size with {tokens} patches of {side} x {side} pixels"
        )
        if options.height is None or options.width is None:
            raise refuse("height", f"packed latents need height and width in pixels: {fitting}")
        rows, columns = self.patches(options, facts)
        if tokens != rows * columns:
            raise refuse(
                "height",
                f"packed: height x width must be {fitting}, but {options.height} x "
                f"{options.width} has {rows} x {columns} = {rows * columns}",
            )
        return Decoded(count, rows * side, columns * side)

    def to_vae(
        self, latents: Tensor, options: JobOptions, facts: VaeFacts, normalization: Normalization
    ) -> Tensor:
        """Unpack tokens: [B, S, 4·C] to [B, C, h, w]; a grid stays as it is."""
        if latents.ndim == 3:
            latents = self.unpack(latents, options, facts)
        return super().to_vae(latents, options, facts, normalization)

    def unpack(self, latents: Tensor, options: JobOptions, facts: VaeFacts) -> Tensor:
        """Turn tokens, whose channels are ordered (C, 2, 2), into a grid."""
        rows, columns = self.patches(options, facts)
        channels, patch = facts.latent_channels, self.patch
        tokens = latents.reshape(-1, rows, columns, channels, patch, patch)
        return tokens.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, rows * patch, columns * patch)

    def _lacks_batch(self, shape: Shape, options: JobOptions, facts: VaeFacts) -> bool:
        if len(shape) != 3:
            return len(shape) == 2
        if shape[0] not in self.grid_channels(facts):
            return False
        if options.height is None or shape[2] != facts.latent_channels * self.patch**2:
            return True
        return shape[1] != math.prod(self.patches(options, facts))

    def grid_channels(self, facts: VaeFacts) -> tuple[int, ...]:
        """The channels that a grid may have."""
        return (facts.latent_channels,)

    def patches(self, options: JobOptions, facts: VaeFacts) -> tuple[int, int]:
        """Count the patches along each side, rounded down as the pipelines do."""
        if options.height is None or options.width is None:
            raise refuse("height", "packed latents need height and width in pixels")
        return options.height // self.side(facts), options.width // self.side(facts)

    def _wrong_channels(self, shape: Shape, facts: VaeFacts) -> LatentsError:
        packed = facts.latent_channels * self.patch**2
        return refuse(
            "latents",
            f"packed latents of this VAE have {packed} channels, [batch, tokens, {packed}], and "
            f"unpacked ones {facts.latent_channels}, [batch, {facts.latent_channels}, height, "
            f"width], but shape {list(shape)} came",
        )


def _example(tokens: int, side: int) -> str:
    """Give the size that is nearest to a square and has so many tokens."""
    for rows in range(math.isqrt(tokens), 0, -1):
        if tokens % rows == 0:
            return f"{rows * side} x {tokens // rows * side} or "
    return ""
