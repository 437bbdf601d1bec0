"""Mochi 1: [B, 12, T, h, w]; z * std / scaling_factor + mean.

Source: diffusers `pipelines/mochi/pipeline_mochi.py`, the decoding step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import VaeFacts, read_count, read_list
from .video import VideoFamily


@dataclass(frozen=True)
class MochiFamily(VideoFamily):
    """The plain case of a video with statistics."""

    fps: ClassVar[float | None] = 30.0

    def facts(self, config: Mapping[str, Any]) -> VaeFacts:
        """Multiply the expansions of the levels."""
        return VaeFacts(
            read_count(config, "latent_channels"),
            math.prod(read_list(config, "spatial_expansions")),
            math.prod(read_list(config, "temporal_expansions")),
        )


MOCHI = MochiFamily("mochi")
