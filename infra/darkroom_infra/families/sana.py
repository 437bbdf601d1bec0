"""Sana: [B, 32, h, w] at a 32nd of the size; z / scaling_factor.

With resolution binning the pipeline generates at the nearest of its sizes, and resizes and crops
the decoded picture to the size that was asked for: height and width say which.
Source: diffusers `pipelines/sana/pipeline_sana.py`, the decoding step.
"""

from __future__ import annotations

from dataclasses import dataclass

from darkroom_wire.jobs import JobOptions

from .base import Decoded, Family, Shape, VaeFacts, refuse

MAX_STRETCH = 4.0
"""By how much a picture may be enlarged, or its aspect ratio differ: what binning never exceeds."""


@dataclass(frozen=True)
class SanaFamily(Family):
    """Height and width may differ from what the latents give: the picture is resized to them."""

    def check_size(
        self, decoded: Decoded, shape: Shape, options: JobOptions, facts: VaeFacts
    ) -> None:
        """Refuse only sizes to which no binning resizes."""
        del facts
        if options.height is None or options.width is None:
            return
        down, across = options.height / decoded.height, options.width / decoded.width
        if max(down, across, down / across, across / down) > MAX_STRETCH:
            raise refuse(
                "height",
                f"latents of shape {list(shape)} give {decoded.height} x {decoded.width} pixels: "
                f"too far from {options.height} x {options.width} to be resized to it",
            )

    def plan(self, shape: Shape, options: JobOptions, facts: VaeFacts) -> Decoded:
        """Expect [B, C, h, w]; the picture has the size that was asked for, where one was."""
        own = super().plan(shape, options, facts)
        if options.height is None or options.width is None:
            return own
        return Decoded(
            own.count, options.height, options.width, resized_from=(own.height, own.width)
        )


SANA = SanaFamily("sana")
