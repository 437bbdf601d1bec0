"""How much of a device's memory a decode takes, as far as the API has to know it.

Only workers can tell, by going through the VAE. What they find is close to linear in the pixels,
and linear it travels: a worker says of each VAE that it loads what the smallest way to decode
takes, and how much it has for that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from .families import Decoded


@dataclass(frozen=True)
class MemoryNeed:
    """What a VAE needs at least to decode, in bytes beyond its weights.

    A picture or video alone takes `per_pixel` H W + `per_frame_pixel` F H W. Those of a job that
    are decoded before or after it take `per_result` for each of their pixels.
    """

    per_pixel: float
    per_frame_pixel: float
    per_result: float

    def bytes_for(self, decoded: Decoded) -> int:
        """Count the bytes for what a job decodes, one picture or video after the other."""
        pixels, frames = math.prod(decoded.largest), decoded.frames or 1
        alone = pixels * (self.per_pixel + frames * self.per_frame_pixel)
        return int(alone + (decoded.count - 1) * frames * pixels * self.per_result)


@dataclass(frozen=True)
class WorkerMemory:
    """The bytes that a worker has for a decode, and what its VAEs need, as far as that is known."""

    budget: int
    needs: Mapping[str, MemoryNeed] = field(default_factory=dict)


def gigabytes(count: int) -> str:
    """Write a number of bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
