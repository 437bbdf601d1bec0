"""FLUX.2: tokens [B, S, 128], normalized by the statistics of a batch-norm layer.

The statistics belong to the 128 channels of a patch, ordered (C, 2, 2), and are undone before the
patches become a grid: z * sqrt(var + eps) + mean. Source: diffusers
`pipelines/flux2/pipeline_flux2.py`, `_unpatchify_latents` and the decoding step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from darkroom_wire.jobs import JobOptions, Scaling

from .base import Decoded, Normalization, Shape, VaeFacts, refuse
from .packed import PackedFamily

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Flux2Family(PackedFamily):
    """Takes tokens [B, S, 4·C], patches [B, 4·C, h/2, w/2] and the VAE's own grid [B, C, h, w]."""

    def plan(self, shape: Shape, options: JobOptions, facts: VaeFacts) -> Decoded:
        """Expect tokens with height and width, patches, or a grid; of whole patches to unscale."""
        own = options.scaling is not Scaling.NONE and (
            options.scaling_factor is None and options.shift_factor is None
        )
        grid = self._grid(shape, facts)
        decoded = super().plan(grid, options, facts)
        if own and len(grid) == self.dimensions and any(length % self.patch for length in grid[2:]):
            raise refuse(
                "latents",
                f"the scaling of this VAE is that of {self.patch} x {self.patch} latents: even "
                f"height and width, or scaling=none, expected, but shape {list(shape)} came",
            )
        return decoded

    def grid_channels(self, facts: VaeFacts) -> tuple[int, ...]:
        """A grid of latents, or of patches."""
        return (facts.latent_channels, facts.latent_channels * self.patch**2)

    def to_vae(
        self, latents: Tensor, options: JobOptions, facts: VaeFacts, normalization: Normalization
    ) -> Tensor:
        """Undo the statistics on patches, whatever the layout was."""
        grid = (
            self.unpack(latents, options, facts)
            if latents.ndim == 3
            else self._unpatchify(latents, facts)
        )
        if normalization.mean is None:
            return normalization.undo(grid)
        return self._unpatchify(normalization.undo(self._patchify(grid)), facts)

    def from_vae(self, latents: Tensor, normalization: Normalization) -> Tensor:
        """Give patches [B, 4·C, h/2, w/2] where the statistics are applied, else the grid."""
        if normalization.mean is None:
            return normalization.apply(latents)
        return normalization.apply(self._patchify(latents))

    def _grid(self, shape: Shape, facts: VaeFacts) -> Shape:
        """Give the shape of the grid that patches become; any other shape as it is."""
        if len(shape) != 4 or shape[1] != facts.latent_channels * self.patch**2:
            return shape
        count, _, rows, columns = shape
        return (count, facts.latent_channels, rows * self.patch, columns * self.patch)

    def _patchify(self, grid: Tensor) -> Tensor:
        count, channels, rows, columns = grid.shape
        patch = self.patch
        split = grid.reshape(count, channels, rows // patch, patch, columns // patch, patch)
        return split.permute(0, 1, 3, 5, 2, 4).reshape(
            count, channels * patch**2, rows // patch, columns // patch
        )

    def _unpatchify(self, latents: Tensor, facts: VaeFacts) -> Tensor:
        """Turn patches into a grid; a grid stays as it is."""
        if latents.shape[1] != facts.latent_channels * self.patch**2:
            return latents
        count, _, rows, columns = latents.shape
        channels, patch = facts.latent_channels, self.patch
        split = latents.reshape(count, channels, patch, patch, rows, columns)
        return split.permute(0, 1, 4, 2, 5, 3).reshape(
            count, channels, rows * patch, columns * patch
        )


FLUX2 = Flux2Family("flux2")
