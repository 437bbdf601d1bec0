"""FLUX.1: latents packed as [B, S, 4·C] or laid out as [B, C, h, w]; z / scaling + shift.

Source: diffusers `pipelines/flux/pipeline_flux.py`, `_unpack_latents` and the decoding step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from darkroom_wire.jobs import JobOptions
from darkroom_wire.problems import FieldError

from .base import Decoded, GridFamily, LatentsError, VaeFacts, check_channels, plan_grid

if TYPE_CHECKING:
    from torch import Tensor

PATCH = 2
"""A packed token holds a square of 2 x 2 latents."""


@dataclass(frozen=True)
class FluxFamily(GridFamily):
    """Packed latents are told by their three dimensions; they need the picture's size."""

    packed: bool = field(default=True, init=False)

    def plan(self, shape: tuple[int, ...], options: JobOptions, facts: VaeFacts) -> Decoded:
        """Expect [B, S, 4·C] with height and width, or [B, C, h, w]."""
        if len(shape) != 3:
            return plan_grid(shape, options, facts)
        count, tokens, channels = shape
        check_channels(channels, facts.latent_channels * PATCH**2, shape)
        rows, columns = _patches(options, facts)
        if tokens != rows * columns:
            side = facts.spatial_factor * PATCH
            raise LatentsError(
                FieldError(
                    field="height",
                    message=f"{options.height} x {options.width} pixels are {rows} x {columns} "
                    f"patches of {side} pixels, {rows * columns} in all, but {tokens} came",
                )
            )
        return Decoded(
            count, rows * PATCH * facts.spatial_factor, columns * PATCH * facts.spatial_factor
        )

    def unpack(self, latents: Tensor, options: JobOptions, facts: VaeFacts) -> Tensor:
        """Turn [B, S, 4·C] into [B, C, h, w]; latents with four dimensions pass as they are."""
        if latents.ndim != 3:
            return latents
        rows, columns = _patches(options, facts)
        count, _, channels = latents.shape
        grid = latents.reshape(count, rows, columns, channels // PATCH**2, PATCH, PATCH)
        return grid.permute(0, 3, 1, 4, 2, 5).reshape(
            count, channels // PATCH**2, rows * PATCH, columns * PATCH
        )


def _patches(options: JobOptions, facts: VaeFacts) -> tuple[int, int]:
    """Count the patches along each side, rounded down as the pipeline does."""
    if options.height is None or options.width is None:
        raise LatentsError(
            FieldError(field="height", message="packed latents need height and width in pixels")
        )
    side = facts.spatial_factor * PATCH
    return options.height // side, options.width // side


FLUX = FluxFamily("flux")
