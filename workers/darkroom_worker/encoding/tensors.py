"""Tensors as safetensors files, written without a second copy of the values in memory.

Format: https://huggingface.co/docs/safetensors (8 bytes of little-endian header length, a JSON
header, then the values, little-endian in C order).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Final

import torch
from torch import Tensor

from darkroom_wire.jobs import Format

from .files import EncodedOutput, EncodeError, measured, temporary_file

DTYPE_CODES: Final[Mapping[torch.dtype, str]] = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
}

ALIGNMENT: Final = 8
"""The values begin at a multiple of so many bytes, as the safetensors library has them."""

VIDEO_DIMENSIONS: Final = 5


def encode_tensor(tensor: Tensor, name: str, fps: float | None = None) -> EncodedOutput:
    """Write one tensor: [..., H, W], or in uint8 pixels [..., H, W, 3].

    Raises:
        EncodeError: the tensor's dtype is none of `DTYPE_CODES`, or it has no height and width.
    """
    code = DTYPE_CODES.get(tensor.dtype)
    # With the channels before the sizes a video is [B, C, F, H, W]; as pixels, [B, F, H, W, 3].
    is_pixels = tensor.dtype is torch.uint8
    sizes = tensor.shape[:-1] if is_pixels else tensor.shape
    if code is None or len(sizes) < 2:
        raise EncodeError(f"safetensors cannot hold {list(tensor.shape)} in {tensor.dtype}")
    is_video = tensor.dim() == VIDEO_DIMENSIONS
    with temporary_file() as file:
        _write(file, tensor, name, code)
        return measured(
            file,
            width=sizes[-1],
            height=sizes[-2],
            extension=Format.SAFETENSORS.value,
            content_type=Format.SAFETENSORS.content_type,
            num_frames=sizes[-3] if is_video else None,
            fps=fps if is_video else None,
        )


def _write(file: BinaryIO, tensor: Tensor, name: str, code: str) -> None:
    entry = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [0, tensor.nbytes]}
    header = json.dumps({name: entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % ALIGNMENT)
    file.write(struct.pack("<Q", len(header)))
    file.write(header)
    # As bytes, because numpy knows no bfloat16.
    file.writelines(block.flatten().view(torch.uint8).numpy().data for block in _blocks(tensor))


def _blocks(tensor: Tensor) -> Iterator[Tensor]:
    """Give the values in C order, in blocks that either lie so in memory or are small."""
    if tensor.is_contiguous() or tensor.dim() <= 2:
        yield tensor.contiguous()
        return
    for part in tensor:
        yield from _blocks(part)
