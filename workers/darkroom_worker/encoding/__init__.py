"""From decoded tensors to files: pictures, videos, archives of frames, and safetensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import torch
from torch import Tensor

from darkroom_wire.jobs import Format

from .files import EncodedOutput, EncodeError
from .pictures import encode_picture
from .tensors import encode_tensor
from .videos import encode_archive, encode_mp4, encode_webp, frame_rate

__all__ = ["TENSOR_NAME", "EncodeError", "EncodedOutput", "encode"]

DEFAULT_QUALITY: Final = 90
TENSOR_NAME: Final = "decoded"

LONGEST_SIDES: Final = {Format.JPEG: 65_500, Format.WEBP: 16_383, Format.MP4: 16_384}
"""The pixels that a side may have: limits of libjpeg, WebP and x264."""

PICTURE_DIMENSIONS: Final = 4
VIDEO_DIMENSIONS: Final = 5


def encode(
    tensor: Tensor,
    chosen: Format,
    *,
    quality: int | None = None,
    fps: float | None = None,
    name: str = TENSOR_NAME,
    on_frame: Callable[[], None] = lambda: None,
) -> Iterator[EncodedOutput]:
    """Encode what the engine gave, one file after the other.

    A file is made when the iterator is asked for it, so that only one is open at a time. It belongs
    to the caller, who closes it.

    Args:
        tensor: pictures [B, H, W, 3] or videos [B, F, H, W, 3] in uint8: one file for each. For
            safetensors any tensor, [..., H, W] or in uint8 [..., H, W, 3]: one file for all.
        chosen: the format. A video becomes an MP4, an animated WebP, or for PNG and JPEG a ZIP
            archive with a picture for each frame.
        quality: 1 to 100, for all but PNG and safetensors.
        fps: frames per second; MP4 and animated WebP need it.
        name: of the tensor in a safetensors file.
        on_frame: called after each frame of a video; what it raises ends the encoding.

    Raises:
        EncodeError: the format cannot hold such a tensor, so that trying again cannot help.
        OSError: the disk is full, for example. Both come from the iterator too.
    """
    if chosen is Format.SAFETENSORS:
        return map(partial(encode_tensor, name=name, fps=fps), [tensor])
    _check(tensor, chosen)
    quality = DEFAULT_QUALITY if quality is None else quality
    if tensor.dim() == PICTURE_DIMENSIONS:
        return map(partial(encode_picture, chosen=chosen, quality=quality), tensor)
    if chosen in (Format.PNG, Format.JPEG):
        archive = partial(encode_archive, chosen=chosen, quality=quality, fps=fps)
        return map(partial(archive, on_frame=on_frame), tensor)
    encoder = encode_mp4 if chosen is Format.MP4 else encode_webp
    return map(partial(encoder, rate=frame_rate(fps), quality=quality, on_frame=on_frame), tensor)


def _check(tensor: Tensor, chosen: Format) -> None:
    smallest = VIDEO_DIMENSIONS if chosen is Format.MP4 else PICTURE_DIMENSIONS
    is_pixels = tensor.dtype is torch.uint8 and tensor.shape[-1:] == (3,)
    if not (is_pixels and smallest <= tensor.dim() <= VIDEO_DIMENSIONS):
        raise EncodeError(f"{chosen} cannot hold {list(tensor.shape)} in {tensor.dtype}")
    longest = LONGEST_SIDES.get(chosen)
    height, width = tensor.shape[-3:-1]
    if longest is not None and max(height, width) > longest:
        raise EncodeError(
            f"{chosen} holds at most {longest} pixels on a side, but {width} x {height} came"
        )
