"""Pixels to encode, and files that are closed when a test has ended."""

from __future__ import annotations

import math
from typing import Any

import torch

from darkroom_wire.jobs import Format
from darkroom_worker.encoding import EncodedOutput, encode

_made: list[EncodedOutput] = []


def smooth(*sizes: int) -> torch.Tensor:
    """Make pixels [*sizes, 3] whose colours change slowly, each picture with others."""
    *outer, height, width = sizes
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    shift = torch.arange(math.prod(outer)).reshape(*outer, 1, 1) * 5
    waves = [torch.sin((x + shift) / 17), torch.cos((y - shift) / 13), torch.sin((x + y) / 29)]
    channels = [wave.expand(*outer, height, width) for wave in waves]
    return (torch.stack(channels, -1) * 100 + 128).round().to(torch.uint8)


def encoded(tensor: torch.Tensor, chosen: Format, **options: Any) -> list[EncodedOutput]:
    """Encode all that a tensor holds; `close_all` closes the files."""
    outputs = list(encode(tensor, chosen, **options))
    _made.extend(outputs)
    return outputs


def close_all() -> None:
    """Close the files that `encoded` made."""
    while _made:
        _made.pop().file.close()
