"""Tensors as bytes: the safetensors format, read strictly, without numpy or torch.

Format: https://huggingface.co/docs/safetensors (8 bytes of little-endian header length, a JSON
header, then the values, little-endian in C order). What comes from outside is hostile: the header's
length is checked before the header is parsed, and names, dtypes, shapes and byte counts before any
value is touched.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

MAX_HEADER_BYTES = 64 * 1024
MAX_DIMENSIONS = 8

ITEM_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1}
"""The bytes of one value, by dtype."""

LATENT_DTYPES = ("float32", "float16", "bfloat16")
UINT8 = "uint8"
PIXEL_DTYPES = (*LATENT_DTYPES, UINT8)

_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint8": "U8"}
_NAMES = {code: name for name, code in _CODES.items()}

COMFY_TENSOR = "latent_tensor"
COMFY_VERSION = "latent_format_version_0"
COMFY_SCALING_FACTOR = 0.18215
"""By which ComfyUI's files are still scaled, unless they have `COMFY_VERSION`."""


class TensorFormatError(ValueError):
    """Bytes that are not the tensor they should be. The text names what was expected and came.

    `field` is what is at fault where shape and dtype come apart from the bytes.
    """

    def __init__(self, message: str, field: str = "latents") -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class TensorInfo:
    """A tensor without its values."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size of the values in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Tensor:
    """A tensor: little-endian values in C order, and what they mean."""

    info: TensorInfo
    data: memoryview


def check_dtype(dtype: str, dtypes: Sequence[str] = LATENT_DTYPES) -> str:
    """Return a supported dtype's name.

    Raises:
        TensorFormatError: the dtype is not one of those that are asked for.
    """
    if dtype not in dtypes:
        raise TensorFormatError(
            f"dtype {dtype[:40]!r} is not supported: one of {', '.join(dtypes)}", "dtype"
        )
    return dtype


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a shape of one to eight positive lengths.

    Raises:
        TensorFormatError: a length is zero or negative, or there are none or too many.
    """
    if not 1 <= len(shape) <= MAX_DIMENSIONS:
        raise TensorFormatError(
            f"shape {list(shape)} has {len(shape)} dimensions: 1 to 8 expected", "shape"
        )
    if any(length < 1 for length in shape):
        raise TensorFormatError(
            f"shape {list(shape)} is empty: every length must be at least 1", "shape"
        )
    return tuple(shape)


def from_raw(
    data: bytes,
    shape: Sequence[int],
    dtype: str,
    name: str = "latents",
    dtypes: Sequence[str] = LATENT_DTYPES,
) -> Tensor:
    """Take raw little-endian bytes as a tensor.

    Raises:
        TensorFormatError: bad shape or dtype, or a byte count that disagrees with them.
    """
    return Tensor(check_raw(len(data), shape, dtype, name, dtypes), memoryview(data))


def check_raw(
    size: int,
    shape: Sequence[int],
    dtype: str,
    name: str = "latents",
    dtypes: Sequence[str] = LATENT_DTYPES,
) -> TensorInfo:
    """Check that so many raw bytes are a tensor.

    Raises:
        TensorFormatError: bad shape or dtype, or a byte count that disagrees with them.
    """
    info = TensorInfo(name, check_dtype(dtype, dtypes), check_shape(shape))
    if info.nbytes != size:
        raise TensorFormatError(
            f"shape {list(info.shape)} of {dtype} takes {info.nbytes} bytes, but {size} came"
        )
    return info


def from_safetensors(body: bytes, dtypes: Sequence[str] = LATENT_DTYPES) -> Mapping[str, Tensor]:
    """Read a safetensors file.

    Raises:
        TensorFormatError: not a safetensors file, a header over 64 KiB, duplicate names, an
            unsupported dtype, or offsets that overlap, leave holes or disagree with the shapes.
    """
    header = SafetensorsHeader.read(body, len(body))
    tensors: dict[str, Tensor] = {}
    spans: list[Span] = []
    for name in header.names:
        span = header.span(name, dtypes)
        begin, end = header.start + span.begin, header.start + span.end
        tensors[name] = Tensor(span.info, memoryview(body)[begin:end])
        spans.append(span)
    header.check_coverage(spans)
    return tensors


@dataclass(frozen=True)
class Span:
    """Where a tensor's values lie, counted from the end of the file's header."""

    info: TensorInfo
    begin: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """What a safetensors file says of its tensors. `start` is where the values begin."""

    start: int
    size: int
    entries: Mapping[str, object]

    @classmethod
    def read(
        cls, head: bytes, size: int, max_header_bytes: int = MAX_HEADER_BYTES
    ) -> SafetensorsHeader:
        """Read the header of a file of so many bytes; `head` may be its beginning alone.

        Raises:
            TensorFormatError: not a safetensors file, a header that is too long, or names that come
                twice.
        """
        entries, start = _header(head, max_header_bytes)
        entries.pop("__metadata__", None)
        return cls(start, size - start, entries)

    @property
    def names(self) -> Sequence[str]:
        """The tensors' names, in the header's order."""
        return list(self.entries)

    def span(self, name: str, dtypes: Sequence[str] = LATENT_DTYPES) -> Span:
        """Check what is said of one tensor.

        Raises:
            TensorFormatError: an unsupported dtype, a bad shape, or offsets that disagree with it.
        """
        info, begin, end = _entry(name, self.entries[name], dtypes)
        if end > self.size:
            raise TensorFormatError(
                f"tensor {name!r} ends at byte {end}, but only {self.size} bytes came"
            )
        return Span(info, begin, end)

    def check_coverage(self, spans: Iterable[Span]) -> None:
        """Check that every byte behind the header is a value of one tensor.

        Raises:
            TensorFormatError: values overlap or leave holes.
        """
        _check_coverage([(span.begin, span.end) for span in spans], self.size)


def to_safetensors(tensors: Sequence[Tensor]) -> bytes:
    """Write tensors as a safetensors file, the values aligned to eight bytes."""
    header: dict[str, object] = {}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.info.nbytes
        header[tensor.info.name] = {
            "dtype": _CODES[tensor.info.dtype],
            "shape": list(tensor.info.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(tensor.data for tensor in tensors)])


def _header(body: bytes, limit: int) -> tuple[dict[str, object], int]:
    if len(body) < 8:
        raise TensorFormatError(f"a safetensors file was expected, but {len(body)} bytes came")
    (length,) = struct.unpack("<Q", body[:8])
    if length > limit:
        raise TensorFormatError(
            f"no safetensors file, or its header is too long: the first 8 bytes announce "
            f"{length} bytes, at most {limit} are read"
        )
    if len(body) < 8 + length:
        raise TensorFormatError(f"the safetensors header ends after {len(body)} bytes of the file")
    try:
        header = json.loads(body[8 : 8 + length].decode(), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        if isinstance(error, TensorFormatError):
            raise
        raise TensorFormatError(f"the safetensors header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise TensorFormatError("the safetensors header is no JSON object")
    return header, 8 + length


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique: dict[str, object] = {}
    for name, value in pairs:
        if name in unique:
            raise TensorFormatError(f"the safetensors header has {name[:60]!r} twice")
        unique[name] = value
    return unique


def _entry(name: str, entry: object, dtypes: Sequence[str]) -> tuple[TensorInfo, int, int]:
    if not isinstance(entry, dict):
        raise TensorFormatError(f"tensor {name!r} has no description")
    code, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not (isinstance(code, str) and _are_counts(shape) and _are_counts(offsets)):
        raise TensorFormatError(f"tensor {name!r} needs dtype, shape and data_offsets")
    if len(offsets) != 2:
        raise TensorFormatError(f"tensor {name!r}: data_offsets must be a begin and an end")
    # ComfyUI marks its files with an empty tensor: the one that may hold nothing.
    lengths = tuple(shape) if name == COMFY_VERSION else check_shape(shape)
    info = TensorInfo(name, check_dtype(_NAMES.get(code, code), dtypes), lengths)
    begin, end = offsets
    if end - begin != info.nbytes:
        raise TensorFormatError(
            f"tensor {name!r}: shape {list(info.shape)} of {info.dtype} takes {info.nbytes} "
            f"bytes, but data_offsets give {end - begin}"
        )
    return info, begin, end


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**63 for item in value
    )


def _check_coverage(spans: list[tuple[int, int]], size: int) -> None:
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise TensorFormatError(f"the values overlap or leave a hole at byte {position}")
        position = end
    if position != size:
        raise TensorFormatError(f"{size - position} bytes follow the last tensor")
