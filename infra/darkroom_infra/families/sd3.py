"""Stable Diffusion 3 and 3.5: [B, 16, h, w], z / scaling_factor + shift_factor.

Source: diffusers `pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py`, the decoding step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Family


@dataclass(frozen=True)
class Sd3Family(Family):
    """As SD; the transformer works on squares of 2 x 2 latents."""

    patch: ClassVar[int] = 2


SD3 = Sd3Family("sd3")
