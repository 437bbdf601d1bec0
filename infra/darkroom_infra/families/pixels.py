"""The pixels that encode jobs take, and in which form a submission holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from darkroom_wire.tensors import UINT8

from .base import RGB, Shape

if TYPE_CHECKING:
    from torch import Tensor

PICTURE_NAME: Final = "picture"
"""Under this name a submission holds the bytes of a PNG, JPEG or WebP file, as a uint8 tensor."""


def planes_shape(shape: Shape, dtype: str) -> Shape:
    """Say which shape pixels have as [B, 3, H, W] or [B, 3, F, H, W].

    The batch axis of a single picture may be left out, and uint8 pixels may have their channels
    last, as pictures have them in memory. Any other shape is given back as it is.
    """
    if len(shape) == 3:
        shape = (1, *shape)
    if _channels_last(shape, dtype):
        return (shape[0], RGB, *shape[1:-1])
    return shape


def to_planes(pixels: Tensor) -> Tensor:
    """Bring pixels into the shape of `planes_shape`, in [-1, 1].

    uint8 is mapped as diffusers' `VaeImageProcessor` does: x / 255 * 2 - 1. Floating point is taken
    to be in [-1, 1] already.
    """
    if pixels.ndim == 3:
        pixels = pixels.unsqueeze(0)
    dtype = str(pixels.dtype).removeprefix("torch.")
    if _channels_last(tuple(pixels.shape), dtype):
        pixels = pixels.movedim(-1, 1)
    return pixels.float() / 255 * 2 - 1 if dtype == UINT8 else pixels


def _channels_last(shape: Shape, dtype: str) -> bool:
    return dtype == UINT8 and len(shape) in (4, 5) and shape[-1] == RGB and shape[1] != RGB
