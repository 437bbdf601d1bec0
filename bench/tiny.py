"""Decoding one picture with an `AutoencoderTiny` of taesd's size, as `decode` does with another."""

from __future__ import annotations

from typing import Any

from .decode import compare, table

__all__ = ["run", "table"]

REPEATS = {256: 5, 512: 5, 1024: 3, 2048: 3}
"""How often each way is measured at each size."""


def run(*, quick: bool) -> dict[str, Any]:
    """Measure; quickly only one small size once."""
    return compare("tiny", {128: 1} if quick else REPEATS)
