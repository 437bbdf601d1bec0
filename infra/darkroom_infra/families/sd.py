"""Stable Diffusion v1, v2 and XL, and the tiny autoencoders: [B, C, h, w].

z / scaling_factor; where an SDXL VAE has statistics, z * std / scaling_factor + mean.
Source: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion.py` and
`pipelines/stable_diffusion_xl/pipeline_stable_diffusion_xl.py`, the decoding steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Family


@dataclass(frozen=True)
class SdFamily(Family):
    """The plain case; the VAE of SDXL overflows in float16 and says so by `force_upcast`."""

    upcasts: ClassVar[bool] = True


SD = SdFamily("sd")
