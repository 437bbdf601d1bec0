"""Many latents as one safetensors file, the body of a batch."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from darkroom._errors import LatentsError
from darkroom._latents import RAW, SAFETENSORS_SUFFIXES, Body, LatentsLike, check_file, read_body
from darkroom_wire.jobs import MAX_BATCH_JOBS, Scaling
from darkroom_wire.tensors import (
    COMFY_SCALING_FACTOR,
    COMFY_TENSOR,
    COMFY_VERSION,
    MAX_HEADER_BYTES,
    SafetensorsHeader,
    Tensor,
    TensorFormatError,
    from_raw,
    from_safetensors,
    to_safetensors,
)

BatchLike: TypeAlias = (
    Mapping[str, LatentsLike] | Iterable[LatentsLike] | str | os.PathLike[str] | bytes
)
"""Latents by name or in order, or the path or the bytes of a safetensors file of many tensors."""

Implied: TypeAlias = Mapping[str, Any]
"""Options that the format of a file implies."""

_SCALING = ("scaling", "scaling_factor", "shift_factor")


def read_batch(given: BatchLike, options: Mapping[str, Any]) -> tuple[bytes, Mapping[str, Any]]:
    """Make the file of a batch, and the options that hold for all that is in it.

    Raises:
        LatentsError: something that cannot be sent, or files that are scaled differently.
    """
    if isinstance(given, bytes | bytearray | memoryview):
        return bytes(given), options
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        if path.suffix.lower() not in SAFETENSORS_SUFFIXES:
            raise LatentsError(f"{path}: a safetensors file of many tensors was expected")
        check_file(path)
        return path.read_bytes(), options
    named = given if isinstance(given, Mapping) else _numbered(given)
    tensors: list[Tensor] = []
    scalings: dict[str, Implied] = {}
    for name, latents in named.items():
        tensor, implied = read_tensor(latents, name)
        tensors.append(tensor)
        scalings.setdefault(repr(implied), implied)
    return join(tensors), _with_scaling(options, list(scalings.values()))


def read_tensor(given: LatentsLike, name: str) -> tuple[Tensor, Implied]:
    """Read latents under a name, and the options that their file's format implies.

    Raises:
        LatentsError: they cannot be sent as one job.
    """
    body = read_body(given)
    try:
        tensor, implied = _from_body(body)
    except TensorFormatError as error:
        raise LatentsError(f"{name}: {error}") from error
    return Tensor(replace(tensor.info, name=name), tensor.data), implied


def implied_by_file(path: Path) -> Implied:
    """Tell which options a file's format implies, without reading its values.

    Raises:
        LatentsError: it cannot be sent as one job.
    """
    check_file(path)
    if path.suffix.lower() not in SAFETENSORS_SUFFIXES:
        return {}
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        head += file.read(min(length, MAX_HEADER_BYTES))
    try:
        names = set(SafetensorsHeader.read(head, path.stat().st_size).names)
        _, implied = _only(names)
    except TensorFormatError as error:
        raise LatentsError(f"{path}: {error}") from error
    return implied


def join(tensors: list[Tensor]) -> bytes:
    """Write tensors as one file.

    Raises:
        LatentsError: none, or more than a batch may have.
    """
    if not 1 <= len(tensors) <= MAX_BATCH_JOBS:
        raise LatentsError(f"a batch of {len(tensors)} latents: 1 to {MAX_BATCH_JOBS} can be sent")
    return to_safetensors(tensors)


def _numbered(given: Iterable[LatentsLike]) -> dict[str, LatentsLike]:
    """Name latents by their place, so that the names sort as they do."""
    items = list(given)
    digits = len(str(len(items)))
    return {f"{index:0{digits}}": item for index, item in enumerate(items)}


def _from_body(body: Body) -> tuple[Tensor, Implied]:
    if body.content_type == RAW:
        shape = [int(value) for name, value in body.query if name == "shape"]
        return from_raw(body.content, shape, dict(body.query)["dtype"]), {}
    found = from_safetensors(body.content)
    name, implied = _only(set(found))
    return found[name], implied


def _only(names: set[str]) -> tuple[str, Implied]:
    """Name a file's only tensor. ComfyUI's have a second, empty one where they are not scaled."""
    if COMFY_TENSOR in names and names <= {COMFY_TENSOR, COMFY_VERSION}:
        unscaled = COMFY_VERSION in names
        return COMFY_TENSOR, (
            {"scaling": Scaling.NONE.value}
            if unscaled
            else {"scaling_factor": COMFY_SCALING_FACTOR}
        )
    if len(names) != 1:
        listed = ", ".join(repr(name) for name in sorted(names)[:5]) or "none"
        raise TensorFormatError(f"one tensor expected, but the file has {len(names)}: {listed}")
    return next(iter(names)), {}


def _with_scaling(options: Mapping[str, Any], implied: list[Implied]) -> Mapping[str, Any]:
    if any(options.get(name) is not None for name in _SCALING):
        return options
    if len(implied) > 1:
        raise LatentsError(
            "these latents are scaled differently, ComfyUI's files among them: submit them as "
            "several batches, or say how with scaling or scaling_factor"
        )
    return {**options, **implied[0]} if implied else options
