"""Latents and pictures of any kind as the body of a request.

torch, numpy and Pillow are looked up among the loaded modules and never imported for a check: an
object cannot be a tensor of a library that nobody has loaded.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from darkroom._errors import LatentsError
from darkroom_wire.jobs import Task
from darkroom_wire.tensors import (
    LATENT_DTYPES,
    PIXEL_DTYPES,
    TensorFormatError,
    check_shape,
)

if TYPE_CHECKING:
    import numpy.typing as npt

SAFETENSORS = "application/x-safetensors"
RAW = "tensor/binary"
SAFETENSORS_SUFFIXES = (".safetensors", ".latent")
PICTURE_TYPES: Mapping[str, str] = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
}
FILE_SUFFIXES: Mapping[Task, tuple[str, ...]] = {
    Task.DECODE: (*SAFETENSORS_SUFFIXES, ".npy"),
    Task.ENCODE: (*PICTURE_TYPES, ".safetensors", ".npy"),
}
"""The files that can be sent."""

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


class TorchTensor(Protocol):
    """What is asked of a `torch.Tensor`, on any device."""

    @property
    def shape(self) -> Sequence[int]:
        """The lengths of its dimensions."""

    @property
    def dtype(self) -> Any:
        """A torch dtype."""

    def detach(self) -> Any:
        """The same values without a gradient."""


class Picture(Protocol):
    """What is asked of a `PIL.Image.Image`."""

    @property
    def mode(self) -> str:
        """How its pixels are stored."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""


LatentsLike: TypeAlias = "TorchTensor | npt.NDArray[Any] | str | os.PathLike[str] | bytes | Picture"
"""A torch tensor, a numpy array, a file's path, or a file's bytes; to be encoded, a `PIL.Image`."""


@dataclass(frozen=True)
class Body:
    """The body of a submission and the query parameters that describe it."""

    content: bytes
    content_type: str
    query: tuple[tuple[str, str], ...] = ()


def read_body(given: LatentsLike, task: object = None) -> Body:
    """Make a request's body from latents, or with the task `encode` from pictures.

    Raises:
        LatentsError: names the dtype, the shape or the file that cannot be sent.
    """
    return _read(given, Task.ENCODE if task == Task.ENCODE else Task.DECODE)


def check_file(path: Path, task: object = None) -> None:
    """Check that a file can be read and has a suffix that is known, without reading all of it.

    Raises:
        LatentsError: names the file and says what is wrong with it.
    """
    known = FILE_SUFFIXES[Task.ENCODE if task == Task.ENCODE else Task.DECODE]
    suffix = path.suffix.lower()
    if suffix not in known:
        hint = " (to encode pictures: task=encode)" if suffix in PICTURE_TYPES else ""
        missing = "" if path.exists() else "there is no such file; "
        raise LatentsError(
            f"{path}: {missing}files that end in {', '.join(known)} can be sent{hint}"
        )
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise LatentsError(f"{path}: cannot be read: {error.strerror}") from error


def _read(given: LatentsLike, task: Task) -> Body:
    dtypes = PIXEL_DTYPES if task is Task.ENCODE else LATENT_DTYPES
    if isinstance(given, bytes | bytearray | memoryview):
        return _from_bytes(bytes(given), task)
    if isinstance(given, str | os.PathLike):
        return _read_file(Path(given), task)
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(given, torch.Tensor):
        return _from_torch(torch, given, dtypes)
    if numpy is not None and isinstance(given, numpy.ndarray):
        return _from_numpy(given, dtypes)
    pillow = sys.modules.get("PIL.Image")
    is_picture = pillow is not None and isinstance(given, pillow.Image)
    if is_picture and task is Task.ENCODE:
        return _from_pillow(given)
    kinds = "a torch.Tensor, a numpy array, a path or the bytes of a safetensors file"
    if task is Task.ENCODE:
        kinds = "a PIL.Image, a torch.Tensor, a numpy array, a path or the bytes of a file"
    raise LatentsError(
        f"{'pixels' if task is Task.ENCODE else 'latents'} of type {type(given).__name__} cannot "
        f"be sent: {kinds} expected" + (' (to encode pictures: task="encode")' * is_picture)
    )


def _from_bytes(content: bytes, task: Task) -> Body:
    """Take a file's bytes; to be encoded, pictures are told by their first ones."""
    if task is Task.ENCODE:
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            return Body(content, "image/png")
        if content.startswith(b"\xff\xd8\xff"):
            return Body(content, "image/jpeg")
        if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
            return Body(content, "image/webp")
    return Body(content, SAFETENSORS)


def _read_file(path: Path, task: Task) -> Body:
    check_file(path, task)
    suffix = path.suffix.lower()
    try:
        if suffix in PICTURE_TYPES:
            return Body(path.read_bytes(), PICTURE_TYPES[suffix])
        if suffix in SAFETENSORS_SUFFIXES:
            return Body(path.read_bytes(), SAFETENSORS)
        return _read_npy(path, PIXEL_DTYPES if task is Task.ENCODE else LATENT_DTYPES)
    except OSError as error:
        raise LatentsError(f"{path}: cannot be read: {error.strerror}") from error


def _read_npy(path: Path, dtypes: Sequence[str]) -> Body:
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise LatentsError(f"{path}: no .npy file of numbers: {error}") from error
    if not isinstance(array, np.ndarray):
        raise LatentsError(f"{path}: an archive of several arrays; save one array with numpy.save")
    try:
        return _from_numpy(array, dtypes)
    except LatentsError as error:
        raise LatentsError(f"{path}: {error}") from error


def _from_pillow(picture: Any) -> Body:
    """Send a picture as PNG, which loses nothing; colour spaces that PNG lacks become RGB."""
    if picture.mode not in _PNG_MODES:
        picture = picture.convert("RGB")
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)  # the way is short, the caller waits
    return Body(file.getvalue(), "image/png")


def _from_numpy(array: npt.NDArray[Any], dtypes: Sequence[str]) -> Body:
    dtype = array.dtype.name
    if dtype not in dtypes:
        raise LatentsError(_refused_dtype(dtype, dtypes, "array.astype(numpy.float32)"))
    little = array if dtype == "bfloat16" else array.astype(array.dtype.newbyteorder("<"))
    return _raw(little.tobytes(), array.shape, dtype)


def _from_torch(torch: Any, tensor: Any, dtypes: Sequence[str]) -> Body:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in dtypes:
        raise LatentsError(_refused_dtype(dtype, dtypes, "tensor.to(torch.float32)"))
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise LatentsError(f"a tensor of layout {tensor.layout} on {tensor.device} has no values")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # numpy has no bfloat16: the values are taken as bytes.
    return _raw(flat.view(torch.uint8).numpy().tobytes(), tuple(tensor.shape), dtype)


def _raw(content: bytes, shape: Sequence[int], dtype: str) -> Body:
    try:
        lengths = check_shape(shape)
    except TensorFormatError as error:
        raise LatentsError(str(error)) from error
    query = (*(("shape", str(length)) for length in lengths), ("dtype", dtype))
    return Body(content, RAW, query)


def _refused_dtype(dtype: str, dtypes: Sequence[str], conversion: str) -> str:
    return (
        f"a tensor of dtype {dtype} cannot be sent, only {', '.join(dtypes)}: "
        f"convert it with {conversion}"
    )
