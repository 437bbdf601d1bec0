"""Pictures: PNG, JPEG and WebP."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import IO, Any, Final

from PIL import Image
from torch import Tensor

from darkroom_wire.jobs import Format

from .files import EncodedOutput, measured

PNG_LEVEL: Final = 1
"""zlib's fastest level: higher ones take several times as long for a few percent."""


def encode_picture(pixels: Tensor, chosen: Format, quality: int) -> EncodedOutput:
    """Encode one picture, [H, W, 3] in uint8."""
    file = io.BytesIO()
    write_picture(file, pixels, chosen, quality)
    height, width, _ = pixels.shape
    return measured(
        file,
        width=width,
        height=height,
        extension=chosen.value,
        content_type=chosen.content_type,
    )


def write_picture(file: IO[bytes], pixels: Tensor, chosen: Format, quality: int) -> None:
    """Write one picture, [H, W, 3] in uint8, into a file."""
    picture = Image.fromarray(pixels.contiguous().numpy())
    picture.save(file, chosen.value, **_parameters(chosen, quality))


def _parameters(chosen: Format, quality: int) -> Mapping[str, Any]:
    if chosen is Format.PNG:
        return {"compress_level": PNG_LEVEL}
    return {"quality": quality}
