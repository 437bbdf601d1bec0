"""Latents of any kind as the body of a request.

torch and numpy are looked up among the loaded modules and never imported for a check: an object
cannot be a tensor of a library that nobody has loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from darkroom._errors import LatentsError
from darkroom_wire.tensors import ITEM_BYTES, TensorFormatError, check_shape

if TYPE_CHECKING:
    import numpy.typing as npt

SAFETENSORS = "application/x-safetensors"
RAW = "tensor/binary"
SAFETENSORS_SUFFIXES = (".safetensors", ".latent")
FILE_SUFFIXES = (*SAFETENSORS_SUFFIXES, ".npy")


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


LatentsLike: TypeAlias = "TorchTensor | npt.NDArray[Any] | str | os.PathLike[str] | bytes"
"""A torch tensor, a numpy array, a file's path, or the bytes of a safetensors file."""


@dataclass(frozen=True)
class Body:
    """The body of a submission and the query parameters that describe it."""

    content: bytes
    content_type: str
    query: tuple[tuple[str, str], ...] = ()


def read_latents(latents: LatentsLike) -> Body:
    """Make a request's body from latents.

    Raises:
        LatentsError: names the dtype, the shape or the file that cannot be sent.
    """
    if isinstance(latents, bytes | bytearray | memoryview):
        return Body(bytes(latents), SAFETENSORS)
    if isinstance(latents, str | os.PathLike):
        return _read_file(Path(latents))
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(latents, torch.Tensor):
        return _from_torch(torch, latents)
    if numpy is not None and isinstance(latents, numpy.ndarray):
        return _from_numpy(latents)
    raise LatentsError(
        f"latents of type {type(latents).__name__} cannot be sent: a torch.Tensor, a numpy array, "
        "a path or the bytes of a safetensors file are expected"
    )


def check_file(path: Path) -> None:
    """Check that a file can be read and has a suffix that is known, without reading all of it.

    Raises:
        LatentsError: names the file and says what is wrong with it.
    """
    if path.suffix.lower() not in FILE_SUFFIXES:
        raise LatentsError(f"{path}: files that end in {', '.join(FILE_SUFFIXES)} can be sent")
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise LatentsError(f"{path}: cannot be read: {error.strerror}") from error


def _read_file(path: Path) -> Body:
    check_file(path)
    try:
        if path.suffix.lower() in SAFETENSORS_SUFFIXES:
            return Body(path.read_bytes(), SAFETENSORS)
        return _read_npy(path)
    except OSError as error:
        raise LatentsError(f"{path}: cannot be read: {error.strerror}") from error


def _read_npy(path: Path) -> Body:
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise LatentsError(f"{path}: no .npy file of numbers: {error}") from error
    if not isinstance(array, np.ndarray):
        raise LatentsError(f"{path}: an archive of several arrays; save one array with numpy.save")
    try:
        return _from_numpy(array)
    except LatentsError as error:
        raise LatentsError(f"{path}: {error}") from error


def _from_numpy(array: npt.NDArray[Any]) -> Body:
    dtype = array.dtype.name
    if dtype not in ITEM_BYTES:
        raise LatentsError(_refused_dtype(dtype, "array.astype(numpy.float32)"))
    little = array if dtype == "bfloat16" else array.astype(array.dtype.newbyteorder("<"))
    return _raw(little.tobytes(), array.shape, dtype)


def _from_torch(torch: Any, tensor: Any) -> Body:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in ITEM_BYTES:
        raise LatentsError(_refused_dtype(dtype, "tensor.to(torch.float32)"))
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise LatentsError(f"a tensor of layout {tensor.layout} on {tensor.device} has no values")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    # numpy has no bfloat16: the bytes are taken as integers of the same size.
    whole = torch.int32 if ITEM_BYTES[dtype] == 4 else torch.int16
    return _raw(flat.view(whole).numpy().tobytes(), tuple(tensor.shape), dtype)


def _raw(content: bytes, shape: Sequence[int], dtype: str) -> Body:
    try:
        lengths = check_shape(shape)
    except TensorFormatError as error:
        raise LatentsError(str(error)) from error
    query = (*(("shape", str(length)) for length in lengths), ("dtype", dtype))
    return Body(content, RAW, query)


def _refused_dtype(dtype: str, conversion: str) -> str:
    return (
        f"latents of dtype {dtype} cannot be sent, only {', '.join(ITEM_BYTES)}: "
        f"convert them with {conversion}"
    )
