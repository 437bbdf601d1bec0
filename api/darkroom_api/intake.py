"""From a request to latents that can be decoded: sizes first, then headers, then values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import Message

from fastapi import Request

from darkroom_infra.catalog import Catalog, UnknownVaeError, VaeEntry
from darkroom_infra.families import LatentsError, VaeFacts
from darkroom_infra.settings import Settings
from darkroom_wire import tensors
from darkroom_wire.jobs import Format, JobOptions, Latents, Scaling
from darkroom_wire.problems import FieldError
from darkroom_wire.tensors import COMFY_TENSOR, COMFY_VERSION, Tensor, TensorFormatError, TensorInfo

from .errors import (
    InvalidRequestError,
    MalformedRequestError,
    TooLargeError,
    UnsupportedMediaError,
)

LATENTS_NAME = "latents"
RAW = "tensor/binary"
SAFETENSORS_TYPES = ("application/octet-stream", "application/x-safetensors")

COMFY_SCALING_FACTOR = 0.18215
"""By which old ComfyUI files are still scaled; newer ones say that they are not."""


@dataclass(frozen=True)
class RawTensor:
    """What the query says of a `tensor/binary` body."""

    shape: tuple[str, ...]
    dtype: str | None


@dataclass(frozen=True)
class Submission:
    """Latents that passed every check: `body` is a safetensors file with one tensor."""

    options: JobOptions
    format: Format
    latents: Latents
    body: bytes


async def read_body(request: Request, limit: int) -> bytes:
    """Read a body, and stop as soon as it is too long.

    Raises:
        TooLargeError: over the limit, by its announced or by its real length.
        MalformedRequestError: a length that is no number.
    """
    announced = request.headers.get("content-length")
    if announced is not None:
        if not announced.isdigit():
            raise MalformedRequestError(f"Content-Length: a number was expected, not {announced!r}")
        _check_length(int(announced), limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        _check_length(len(body), limit)
    return bytes(body)


def content_type(request: Request) -> str:
    """Tell which of the accepted kinds a body is.

    Raises:
        UnsupportedMediaError: none of them.
    """
    message = Message()
    message["content-type"] = request.headers.get("content-type", "")
    kind = message.get_content_type()
    if kind != RAW and kind not in SAFETENSORS_TYPES:
        raise UnsupportedMediaError(
            f"Content-Type {request.headers.get('content-type')!r}: one of "
            f"{', '.join((*SAFETENSORS_TYPES, RAW))} expected"
        )
    return kind


def find_vae(catalog: Catalog, name: str) -> VaeEntry:
    """Look a VAE up.

    Raises:
        InvalidRequestError: there is none of that name.
    """
    try:
        return catalog[name]
    except UnknownVaeError:
        known = ", ".join(sorted(catalog))
        raise InvalidRequestError.of(
            FieldError(field="vae", message=f"unknown VAE {name!r}: one of {known}")
        ) from None


def check_options(options: JobOptions, vae: VaeEntry) -> Format:
    """Check the options against the VAE's family, and choose the format.

    Raises:
        InvalidRequestError: something that this family cannot do.
    """
    chosen = options.format or vae.layout.formats[0]
    faults = []
    if chosen not in vae.layout.formats:
        possible = ", ".join(vae.layout.formats)
        faults.append(
            FieldError(
                field="format", message=f"{vae.name} gives {possible}, but {chosen} was asked for"
            )
        )
    faults += [
        FieldError(field=field, message=f"{vae.name} gives pictures, which have no frames")
        for field in ("fps", "num_frames")
        if getattr(options, field) is not None
    ]
    if options.callback_url is not None or options.callback_events is not None:
        faults.append(
            FieldError(field="callback_url", message="this version sends no webhooks yet")
        )
    if faults:
        raise InvalidRequestError.of(*faults)
    return chosen


def read_latents(body: bytes, kind: str, raw: RawTensor) -> tuple[Tensor, Mapping[str, object]]:
    """Find the one tensor in a body, and the options that the file's own format implies.

    Raises:
        InvalidRequestError: no tensor, several, or one that is not what it says.
    """
    try:
        return _raw_tensor(body, raw) if kind == RAW else _file_tensor(body, raw)
    except TensorFormatError as error:
        field = error.field if kind == RAW else "latents"
        raise InvalidRequestError.of(FieldError(field=field, message=str(error))) from error


def _raw_tensor(body: bytes, raw: RawTensor) -> tuple[Tensor, Mapping[str, object]]:
    if raw.dtype is None:
        raise TensorFormatError(
            f"{RAW} needs it in the query: one of {', '.join(tensors.ITEM_BYTES)}", "dtype"
        )
    return tensors.from_raw(body, _parse_shape(raw.shape), raw.dtype), {}


def _parse_shape(values: Sequence[str]) -> list[int]:
    """Read `shape=1&shape=4&…` or `shape=1,4,…`."""
    lengths = [length.strip() for value in values for length in value.split(",")]
    if not lengths or not all(length.isascii() and length.isdigit() for length in lengths):
        raise TensorFormatError(
            f"{RAW} needs shape=1&shape=4&… in the query, not {lengths}", "shape"
        )
    if any(len(length) > 18 for length in lengths):
        raise TensorFormatError(f"a length in shape {lengths} is absurd", "shape")
    return [int(length) for length in lengths]


def _file_tensor(body: bytes, raw: RawTensor) -> tuple[Tensor, Mapping[str, object]]:
    """Take a safetensors file's only tensor.

    ComfyUI's files say by a second, empty one that they are not scaled; those without it are.
    """
    if raw.shape or raw.dtype:
        raise TensorFormatError(f"only a {RAW} body has a shape and a dtype in the query")
    found = tensors.from_safetensors(body)
    names = set(found)
    if COMFY_TENSOR in names and names <= {COMFY_TENSOR, COMFY_VERSION}:
        implied = (
            {"scaling": Scaling.NONE}
            if COMFY_VERSION in names
            else {"scaling_factor": COMFY_SCALING_FACTOR}
        )
        return found[COMFY_TENSOR], implied
    if len(found) != 1:
        listed = ", ".join(repr(name) for name in sorted(names)[:5]) or "none"
        raise TensorFormatError(f"one tensor expected, but the file has {len(found)}: {listed}")
    return next(iter(found.values())), {}


def check_latents(
    tensor: TensorInfo, options: JobOptions, vae: VaeEntry, facts: VaeFacts | None, limit: int
) -> None:
    """Check shape and size against the VAE, as far as it is known.

    Raises:
        InvalidRequestError: the latents do not fit.
        TooLargeError: more pixels than a job may have.
    """
    if facts is None:
        return
    try:
        decoded = vae.layout.plan(tensor.shape, options, facts)
    except LatentsError as error:
        raise InvalidRequestError.of(*error.errors) from error
    if decoded.pixels > limit:
        message = (
            f"{decoded.count} x {decoded.height} x {decoded.width} = {decoded.pixels} pixels, "
            f"at most {limit} in one job"
        )
        raise TooLargeError(message, [FieldError(field="latents", message=message)])


def prepare(
    body: bytes,
    kind: str,
    raw: RawTensor,
    options: JobOptions,
    vae: VaeEntry,
    facts: VaeFacts | None,
    settings: Settings,
) -> Submission:
    """Check a whole submission and bring its body into the form in which it is stored.

    Raises:
        InvalidRequestError, TooLargeError: as the steps above say.
    """
    chosen = check_options(options, vae)
    tensor, implied = read_latents(body, kind, raw)
    if (options.scaling, options.scaling_factor, options.shift_factor) == (None, None, None):
        options = options.model_copy(update=implied)
    check_latents(tensor.info, options, vae, facts, settings.max_pixels)
    info = TensorInfo(LATENTS_NAME, tensor.info.dtype, tensor.info.shape)
    return Submission(
        options=options,
        format=chosen,
        latents=Latents(shape=info.shape, dtype=info.dtype, bytes=info.nbytes),
        body=tensors.to_safetensors([Tensor(info, tensor.data)]),
    )


def _check_length(length: int, limit: int) -> None:
    if length > limit:
        raise TooLargeError(f"the body has {length} bytes or more, at most {limit} are accepted")
