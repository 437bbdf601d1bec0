"""From decoded tensors to files: PNG, JPEG, WebP and safetensors."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import safetensors.torch
from PIL import Image
from torch import Tensor

from darkroom_wire.jobs import Format

DEFAULT_QUALITY: Final = 90
PNG_LEVEL: Final = 1
"""zlib's fastest level: higher ones take several times as long for a few percent."""

TENSOR_NAME: Final = "decoded"


@dataclass(frozen=True)
class EncodedOutput:
    """One file, and the size of its pictures in pixels."""

    body: bytes
    width: int
    height: int
    extension: str
    content_type: str


def encode(tensor: Tensor, chosen: Format, quality: int | None) -> list[EncodedOutput]:
    """Encode what the engine gave.

    Args:
        tensor: pixels [B, H, W, 3] in uint8 for a picture format: one output for each picture;
            [B, 3, H, W] for safetensors: one output for all.
        chosen: the format.
        quality: 1 to 100 for JPEG and WebP.
    """
    if chosen is Format.SAFETENSORS:
        body = safetensors.torch.save({TENSOR_NAME: tensor.contiguous()})
        height, width = tensor.shape[-2:]
        return [EncodedOutput(body, width, height, "safetensors", chosen.content_type)]
    return [_encode_picture(pixels, chosen, quality) for pixels in tensor]


def _encode_picture(pixels: Tensor, chosen: Format, quality: int | None) -> EncodedOutput:
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, chosen.value, **_parameters(chosen, quality))
    height, width, _ = pixels.shape
    return EncodedOutput(file.getvalue(), width, height, chosen.value, chosen.content_type)


def _parameters(chosen: Format, quality: int | None) -> Mapping[str, Any]:
    if chosen is Format.PNG:
        return {"compress_level": PNG_LEVEL}
    return {"quality": quality or DEFAULT_QUALITY}
