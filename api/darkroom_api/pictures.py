"""Pictures sent for encoding: what their headers say, before anybody decodes them."""

from __future__ import annotations

import io
from typing import Final

import imagesize

from darkroom_wire.problems import FieldError

from .errors import InvalidRequestError

PICTURE_TYPES: Final = ("image/png", "image/jpeg", "image/webp")


def is_picture(body: bytes) -> bool:
    """Tell PNG, JPEG and WebP by their first bytes."""
    webp = body[:4] == b"RIFF" and body[8:12] == b"WEBP"
    return body.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or webp


def picture_size(body: bytes) -> tuple[int, int]:
    """Read height and width from a picture's header; no pixel is decoded.

    Raises:
        InvalidRequestError: this is no PNG, JPEG or WebP, or its header has no size.
    """
    if not is_picture(body):
        raise _refuse("a PNG, JPEG or WebP file was expected, but the first bytes are of no such")
    width, height = imagesize.get(io.BytesIO(body))
    if width < 1 or height < 1:
        raise _refuse("its header has no size: the file is damaged or was cut off")
    return int(height), int(width)


def _refuse(message: str) -> InvalidRequestError:
    return InvalidRequestError.of(FieldError(field="picture", message=message))
