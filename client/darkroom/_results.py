"""The bytes of outputs as pictures, arrays and tensors.

PIL and torch are used where they are installed and are no dependency: they are looked up by name.
"""

from __future__ import annotations

import importlib
import io
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from darkroom._errors import ResultTypeError, UnexpectedAnswerError
from darkroom_wire.jobs import Format, Job, OutputInfo
from darkroom_wire.tensors import PIXEL_DTYPES, Tensor, TensorFormatError, from_safetensors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

As: TypeAlias = Literal["auto", "pil", "bytes", "numpy", "torch"]

ARCHIVE = "application/zip"
"""The type of a video's frames as pictures."""

_OR_BYTES = ', or ask for as_="bytes"'


def convert(job: Job, outputs: Sequence[bytes], as_: As) -> Any:
    """Give a job's outputs as what was asked for: one object for one output, else a list.

    Pictures as numbers are always one array for all, [B, H, W, 3], and videos [B, F, H, W, 3].

    Raises:
        ResultTypeError: these outputs cannot be had as that, or a library for it is missing.
    """
    kinds = [_kind(output) for output in job.outputs]
    converted = [
        _converter(kind, as_)(content) for kind, content in zip(kinds, outputs, strict=True)
    ]
    if as_ in ("numpy", "torch") and _Kind.TENSOR not in kinds:
        return _stack(converted, as_)
    return converted[0] if len(converted) == 1 else converted


def load_library(module: str, need: str, instead: str = "") -> Any:
    """Import a library that the client does not depend on.

    Raises:
        ResultTypeError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ResultTypeError(f"{need}, which is not installed: install it{instead}") from error


class _Kind(StrEnum):
    """What an output is."""

    PICTURE = "a picture"
    ANIMATION = "an animated picture"
    FRAMES = "an archive of frames"
    TENSOR = "a tensor"
    FILE = "a file"


_PICTURES: tuple[As, ...] = ("pil", "numpy", "torch", "bytes")
_ADVICE: Mapping[_Kind, tuple[As, ...]] = {
    _Kind.PICTURE: _PICTURES,
    _Kind.ANIMATION: _PICTURES,
    _Kind.FRAMES: _PICTURES,
    _Kind.TENSOR: ("numpy", "torch", "bytes"),
    _Kind.FILE: ("bytes",),
}
"""As what an output can be had."""


def _kind(output: OutputInfo) -> _Kind:
    if output.content_type.startswith("image/"):
        return _Kind.PICTURE if output.num_frames is None else _Kind.ANIMATION
    if output.content_type == ARCHIVE:
        return _Kind.FRAMES
    if output.content_type == Format.SAFETENSORS.content_type:
        return _Kind.TENSOR
    return _Kind.FILE


def _converter(kind: _Kind, as_: As) -> Callable[[bytes], Any]:
    """Choose what makes of an output what was asked for; of pictures as numbers, only pictures."""
    if as_ == "auto":
        as_ = _automatic(kind)
    if as_ not in _ADVICE[kind]:
        *first, last = (f'"{name}"' for name in _ADVICE[kind])
        advice = f"{', '.join(first)} or {last}" if first else last
        raise ResultTypeError(f'{kind} cannot be given with as_="{as_}": ask for {advice}')
    if as_ == "bytes":
        return bytes
    if kind is _Kind.TENSOR:
        return _to_torch if as_ == "torch" else _to_numpy
    if kind is _Kind.PICTURE:
        return _to_picture
    return _to_frames if kind is _Kind.FRAMES else _to_animation


def _automatic(kind: _Kind) -> As:
    if kind is _Kind.TENSOR:
        return "torch" if "torch" in sys.modules else "numpy"
    return "pil" if kind in (_Kind.PICTURE, _Kind.ANIMATION) else "bytes"


def _to_picture(content: bytes) -> Any:
    image = _pillow().open(io.BytesIO(content))
    image.load()
    return image


def _to_animation(content: bytes) -> list[Any]:
    image = _pillow().open(io.BytesIO(content))
    frames = []
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        frames.append(image.convert("RGB"))
    return frames


def _to_frames(content: bytes) -> list[Any]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return [_to_picture(archive.read(name)) for name in sorted(archive.namelist())]
    except zipfile.BadZipFile as error:
        raise UnexpectedAnswerError(f"the result is no archive: {error}") from error


def _stack(pictures: Sequence[Any], as_: As) -> Any:
    """Give the pixels of pictures or of lists of frames, all of one size, as one array."""
    import numpy as np

    pixels = np.stack([_pixels(picture) for picture in pictures])
    return pixels if as_ == "numpy" else _torch().from_numpy(pixels)


def _pixels(opened: Any) -> npt.NDArray[np.uint8]:
    import numpy as np

    if isinstance(opened, list):
        return np.stack([np.asarray(frame) for frame in opened])
    return np.asarray(opened)


def _to_numpy(content: bytes) -> npt.NDArray[Any]:
    """Give a tensor as an array. numpy has no bfloat16: those values come widened to float32."""
    import numpy as np

    tensor = _only_tensor(content)
    if tensor.info.dtype == "bfloat16":
        return _widen(np.frombuffer(tensor.data, "<u2")).reshape(tensor.info.shape)
    values = np.frombuffer(tensor.data, np.dtype(tensor.info.dtype).newbyteorder("<"))
    return values.reshape(tensor.info.shape).copy()


def _widen(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    import numpy as np

    return (bits.astype(np.uint32) << 16).view(np.float32)


def _to_torch(content: bytes) -> Any:
    torch = _torch()
    tensor = _only_tensor(content)
    # bytearray: torch wants to own memory that may be written to.
    values = torch.frombuffer(bytearray(tensor.data), dtype=getattr(torch, tensor.info.dtype))
    return values.reshape(tensor.info.shape)


def _only_tensor(content: bytes) -> Tensor:
    try:
        (tensor,) = from_safetensors(content, PIXEL_DTYPES).values()
    except (TensorFormatError, ValueError) as error:
        raise UnexpectedAnswerError(
            f"the result is no safetensors file of one tensor: {error}"
        ) from error
    return tensor


def _pillow() -> Any:
    return load_library("PIL.Image", "a picture needs Pillow", _OR_BYTES)


def _torch() -> Any:
    return load_library("torch", "a torch tensor needs torch", _OR_BYTES)
