"""The bytes of outputs as pictures, arrays and tensors.

PIL and torch are used where they are installed and are no dependency: they are looked up by name.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from darkroom._errors import ResultTypeError, UnexpectedAnswerError
from darkroom_wire.jobs import Format, Job
from darkroom_wire.tensors import Tensor, TensorFormatError, from_safetensors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

As: TypeAlias = Literal["auto", "pil", "bytes", "numpy", "torch"]


def convert(job: Job, outputs: Sequence[bytes], as_: As) -> Any:
    """Give a job's outputs as what was asked for: one object for one output, else a list.

    Raises:
        ResultTypeError: these outputs cannot be had as that, or a library for it is missing.
    """
    converted = [
        _converter(output.content_type, as_)(content)
        for output, content in zip(job.outputs, outputs, strict=True)
    ]
    return converted[0] if len(converted) == 1 else converted


def _converter(content_type: str, as_: As) -> Callable[[bytes], Any]:
    is_picture = content_type.startswith("image/")
    is_tensor = content_type == Format.SAFETENSORS.content_type
    if as_ == "bytes" or (as_ == "auto" and not is_picture and not is_tensor):
        return bytes
    if is_picture and as_ in ("auto", "pil"):
        return _to_picture
    if is_tensor and as_ == "auto":
        return _to_torch if "torch" in sys.modules else _to_numpy
    if is_tensor and as_ in ("numpy", "torch"):
        return {"numpy": _to_numpy, "torch": _to_torch}[as_]
    raise ResultTypeError(
        f'an output of type {content_type} cannot be given with as_="{as_}": ask for "bytes"'
        + (', "numpy" or "torch"' if is_tensor else ' or "pil"' if is_picture else "")
    )


def _to_picture(content: bytes) -> Any:
    image = _load("PIL.Image", "a picture needs Pillow").open(io.BytesIO(content))
    image.load()
    return image


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
    torch = _load("torch", "a torch tensor needs torch")
    tensor = _only_tensor(content)
    # bytearray: torch wants to own memory that may be written to.
    values = torch.frombuffer(bytearray(tensor.data), dtype=getattr(torch, tensor.info.dtype))
    return values.reshape(tensor.info.shape)


def _only_tensor(content: bytes) -> Tensor:
    try:
        (tensor,) = from_safetensors(content).values()
    except (TensorFormatError, ValueError) as error:
        raise UnexpectedAnswerError(
            f"the result is no safetensors file of one tensor: {error}"
        ) from error
    return tensor


def _load(module: str, need: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ResultTypeError(
            f'{need}, which is not installed: install it, or ask for as_="bytes"'
        ) from error
