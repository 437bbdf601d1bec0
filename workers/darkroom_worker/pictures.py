"""Pictures that are to be encoded: from a PNG, JPEG or WebP file to what a VAE takes."""

from __future__ import annotations

import io
import itertools

import numpy
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from darkroom_infra.families import to_planes

FORMATS = ("PNG", "JPEG", "WEBP")


class PictureError(ValueError):
    """A file that is no picture, with the reason."""


def read_picture(content: bytes, shape: tuple[int, ...]) -> Tensor:
    """Decode a picture's file whose header was checked: [1, H, W, 3] in uint8.

    Colours become RGB as in `diffusers.utils.load_image`; transparency is dropped.

    Args:
        content: The file.
        shape: What the header said, [1, 3, height, width]: nothing larger is decoded.

    Raises:
        PictureError: it is damaged, or not of that size.
    """
    _, _, height, width = shape
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.size != (width, height):
                raise PictureError(
                    f"the header says {width} x {height} pixels, but the picture has "
                    f"{picture.width} x {picture.height}"
                )
            pixels = picture.convert("RGB").tobytes()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, PictureError):
            raise
        raise PictureError(f"the picture cannot be decoded: {error}") from error
    tensor = torch.frombuffer(bytearray(pixels), dtype=torch.uint8)
    return tensor.reshape(1, height, width, 3)


def prepare_pixels(pixels: Tensor, side: int) -> Tensor:
    """Bring pixels into the form that VAEs take: [B, 3, H, W] or [B, 3, F, H, W] in [-1, 1].

    uint8 pixels are pictures: where a side is no multiple of `side` they are resized to the next
    smaller one, as diffusers' `VaeImageProcessor` does. Floating point is taken as it is.
    """
    planes = to_planes(pixels)
    height, width = planes.shape[-2:]
    if pixels.dtype is not torch.uint8 or not (height % side or width % side):
        return planes
    size = (width - width % side, height - height % side)
    if 0 in size:
        return planes
    frames = planes.movedim(1, -1)
    *leading, _, _, _ = frames.shape
    resized = torch.empty(*leading, size[1], size[0], 3)
    for index in itertools.product(*map(range, leading)):
        whole = ((frames[index] + 1) * 127.5).round().to(torch.uint8).numpy()
        picture = Image.fromarray(whole).resize(size, Image.Resampling.LANCZOS)
        resized[index] = torch.from_numpy(numpy.asarray(picture).copy()).float() / 255 * 2 - 1
    return resized.movedim(-1, 1)
