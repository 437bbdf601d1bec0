"""From a request to what a worker can do: sizes first, then headers, then values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.message import Message

from fastapi import Request

from darkroom_infra.catalog import Catalog, UnknownVaeError, VaeEntry
from darkroom_infra.families import (
    PICTURE_NAME,
    RGB,
    Decoded,
    Family,
    LatentsError,
    VaeFacts,
    plan,
    planes_shape,
)
from darkroom_infra.memory import MemoryNeed, gigabytes
from darkroom_infra.records import Content, Rendering
from darkroom_infra.store import StoredObject
from darkroom_wire import tensors
from darkroom_wire.jobs import Format, JobOptions, Latents, Scaling, Task
from darkroom_wire.problems import FieldError
from darkroom_wire.tensors import (
    COMFY_SCALING_FACTOR,
    COMFY_TENSOR,
    COMFY_VERSION,
    LATENT_DTYPES,
    PIXEL_DTYPES,
    UINT8,
    SafetensorsHeader,
    Tensor,
    TensorFormatError,
    TensorInfo,
)

from .errors import (
    InvalidRequestError,
    MalformedRequestError,
    TooLargeError,
    UnsupportedMediaError,
)
from .pictures import PICTURE_TYPES, is_picture, picture_size

LATENTS_NAME = "latents"
PIXELS_NAME = "pixels"
RAW = "tensor/binary"
SAFETENSORS_TYPES = ("application/octet-stream", "application/x-safetensors")

_VIDEO_ONLY = ("fps", "num_frames")
_DECODE_ONLY = (*_VIDEO_ONLY, "quality", "height", "width")


@dataclass(frozen=True)
class RawTensor:
    """What the query says of a `tensor/binary` body."""

    shape: tuple[str, ...]
    dtype: str | None


@dataclass(frozen=True)
class Source:
    """What was submitted, and what it is said to be. `head` is its beginning, or all of it."""

    head: bytes
    size: int
    kind: str
    raw: RawTensor


@dataclass(frozen=True)
class Examined:
    """What passed every check. `tensor` is what is stored; its values begin at `begin`."""

    options: JobOptions
    format: Format
    latents: Latents
    tensor: TensorInfo
    begin: int


@dataclass(frozen=True)
class Submission:
    """What passed every check: `body` is a safetensors file with one tensor.

    That is latents, pixels, or the bytes of a picture's file. Or it is an object to be copied, and
    `content` says where in it the tensor lies, unless it is such a file.
    """

    options: JobOptions
    format: Format
    rendering: Rendering
    latents: Latents
    body: bytes | StoredObject
    content: Content | None = None


@dataclass(frozen=True)
class MemoryLimit:
    """What a VAE needs at least, and the bytes that the largest of the living workers has."""

    need: MemoryNeed
    budget: int


@dataclass(frozen=True)
class Rules:
    """What a submission is checked against.

    `facts` are None while nobody has seen the VAE, and `memory` while no worker knows it.
    """

    catalog: Catalog
    vae: VaeEntry
    facts: VaeFacts | None
    max_pixels: int
    memory: MemoryLimit | None = None


async def read_body(request: Request, limit: int) -> bytes:
    """Read a body, and stop as soon as it is too long.

    Raises:
        TooLargeError: over the limit, by its announced or by its real length.
        MalformedRequestError: a length that is no number.
    """
    check_announced(request, limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        check_length(len(body), limit)
    return bytes(body)


def check_announced(request: Request, limit: int) -> None:
    """Check the length that a body is going to have, where it is told.

    Raises:
        TooLargeError: over the limit.
        MalformedRequestError: a length that is no number.
    """
    announced = request.headers.get("content-length")
    if announced is not None:
        if not announced.isdigit():
            raise MalformedRequestError(f"Content-Length: a number was expected, not {announced!r}")
        check_length(int(announced), limit)


def content_type(request: Request, task: Task) -> str:
    """Tell which of the accepted kinds a body is.

    Raises:
        UnsupportedMediaError: none of them.
    """
    kind = media_type(request)
    accepted = (*SAFETENSORS_TYPES, RAW, *(PICTURE_TYPES if task is Task.ENCODE else ()))
    if kind not in accepted:
        raise UnsupportedMediaError(
            f"Content-Type {request.headers.get('content-type')!r}: one of "
            f"{', '.join(accepted)} expected"
        )
    return kind


def media_type(request: Request) -> str:
    """Read `Content-Type` without its parameters."""
    message = Message()
    message["content-type"] = request.headers.get("content-type", "")
    return message.get_content_type()


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
    """Check the options against the task and the VAE's family, and choose the format.

    Raises:
        InvalidRequestError: something that this family cannot do.
    """
    family = vae.layout
    encodes = options.task is Task.ENCODE
    formats = (Format.SAFETENSORS,) if encodes else family.formats
    chosen = options.format or formats[0]
    faults = []
    if chosen not in formats:
        gives = f"{vae.name} encodes to" if encodes else f"{vae.name} gives"
        faults.append(
            FieldError(
                field="format",
                message=f"{gives} {', '.join(formats)}, but {chosen} was asked for",
            )
        )
    meaningless: dict[str, str] = {}
    if encodes:
        meaningless = dict.fromkeys(_DECODE_ONLY, "an encode job has no such option")
    elif family.fps is None:
        gives = f"{vae.name} gives pictures, which have no frames"
        meaningless = dict.fromkeys(_VIDEO_ONLY, gives)
    faults += [
        FieldError(field=field, message=message)
        for field, message in meaningless.items()
        if getattr(options, field) is not None
    ]
    if faults:
        raise InvalidRequestError.of(*faults)
    return chosen


@dataclass(frozen=True)
class _Found:
    """The one tensor in a file: where its values begin, and the options that the file implies."""

    info: TensorInfo
    begin: int
    implied: Mapping[str, object] = field(default_factory=dict)


def _find_tensor(
    source: Source,
    dtypes: Sequence[str] = LATENT_DTYPES,
    name: str = LATENTS_NAME,
    expected: str = "",
) -> _Found:
    """Find the one tensor in what was submitted.

    Args:
        source: what was submitted.
        dtypes: those that are accepted.
        name: the field at fault where a file is.
        expected: what a refusal of a file begins with.

    Raises:
        InvalidRequestError: no tensor, several, or one that is not what it says.
    """
    raw = source.kind == RAW
    try:
        return _raw_tensor(source, dtypes) if raw else _file_tensor(source, dtypes)
    except TensorFormatError as error:
        at_fault, message = (error.field, str(error)) if raw else (name, f"{expected}{error}")
        raise InvalidRequestError.of(FieldError(field=at_fault, message=message)) from error


def _raw_tensor(source: Source, dtypes: Sequence[str]) -> _Found:
    dtype = source.raw.dtype
    if dtype is None:
        raise TensorFormatError(f"{RAW} needs it in the query: one of {', '.join(dtypes)}", "dtype")
    shape = _parse_shape(source.raw.shape)
    return _Found(tensors.check_raw(source.size, shape, dtype, dtypes=dtypes), 0)


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


def _file_tensor(source: Source, dtypes: Sequence[str]) -> _Found:
    """Find a safetensors file's only tensor.

    ComfyUI's files say by a second, empty one that they are not scaled; those without it are.
    """
    if source.raw.shape or source.raw.dtype:
        raise TensorFormatError(f"only a {RAW} body has a shape and a dtype in the query")
    header = SafetensorsHeader.read(source.head, source.size)
    spans = {name: header.span(name, dtypes) for name in header.names}
    header.check_coverage(spans.values())
    implied: Mapping[str, object] = {}
    names = set(spans)
    name = next(iter(names), "")
    if COMFY_TENSOR in names and names <= {COMFY_TENSOR, COMFY_VERSION}:
        name = COMFY_TENSOR
        implied = (
            {"scaling": Scaling.NONE}
            if COMFY_VERSION in names
            else {"scaling_factor": COMFY_SCALING_FACTOR}
        )
    elif len(names) != 1:
        listed = ", ".join(repr(name) for name in sorted(names)[:5]) or "none"
        raise TensorFormatError(f"one tensor expected, but the file has {len(names)}: {listed}")
    return _Found(spans[name].info, header.start + spans[name].begin, implied)


def prepare(
    body: bytes,
    kind: str,
    raw: RawTensor,
    options: JobOptions,
    rules: Rules,
    rendering: Rendering = Rendering.DECODED,
) -> Submission:
    """Check a whole submission and bring its body into the form in which it is stored.

    Raises:
        InvalidRequestError: options or body do not fit the VAE or each other.
        TooLargeError: more pixels than a job may have.
    """
    found = examine(Source(body, len(body), kind, raw), options, rules)
    values = memoryview(body)[found.begin : found.begin + found.tensor.nbytes]
    return Submission(
        options=found.options,
        format=found.format,
        rendering=rendering,
        latents=found.latents,
        body=tensors.to_safetensors([Tensor(found.tensor, values)]),
    )


def examine(source: Source, options: JobOptions, rules: Rules) -> Examined:
    """Check options and latents against the VAE and each other, without touching a value.

    Raises:
        InvalidRequestError: options or latents do not fit the VAE or each other.
        TooLargeError: more pixels than a job may have.
    """
    chosen = check_options(options, rules.vae)
    if options.task is Task.ENCODE:
        found, described = _examine_pixels(source, rules)
    else:
        found = _find_tensor(source)
        if (options.scaling, options.scaling_factor, options.shift_factor) == (None, None, None):
            options = options.model_copy(update=found.implied)
        check_latents(found.info, options, rules)
        found = replace(found, info=replace(found.info, name=LATENTS_NAME))
        described = Latents(shape=found.info.shape, dtype=found.info.dtype, bytes=found.info.nbytes)
    return Examined(options, chosen, described, found.info, found.begin)


def check_latents(latents: TensorInfo, options: JobOptions, rules: Rules) -> None:
    """Check shape and size against the VAE, as far as it is known.

    Raises:
        InvalidRequestError: they do not fit.
        TooLargeError: more pixels than a job may have, or more memory needed than workers have.
    """
    if rules.facts is None:
        return
    try:
        decoded = plan(rules.vae.layout, latents.shape, options, rules.facts)
    except LatentsError as error:
        hint = _hint(latents.shape, options, rules)
        raise InvalidRequestError.of(
            *(
                fault.model_copy(update={"message": fault.message + hint})
                if fault.field == "latents"
                else fault
                for fault in error.errors
            )
        ) from error
    frames = f"{decoded.frames} frames of " if decoded.frames else ""
    height, width = decoded.largest
    size = f"{decoded.count} x {frames}{height} x {width}"
    _check_pixels(decoded.pixels, size, "latents", rules)
    if rules.memory is not None:
        _check_memory(decoded, size, rules.memory)


def _check_memory(decoded: Decoded, size: str, memory: MemoryLimit) -> None:
    needed = memory.need.bytes_for(decoded)
    if needed > memory.budget:
        message = (
            f"{size} takes {gigabytes(needed)} of memory to decode at least, and no worker has "
            f"more than {gigabytes(memory.budget)} for it: send fewer or smaller ones in one job"
        )
        raise TooLargeError(message, [FieldError(field="latents", message=message)])


def _hint(shape: tuple[int, ...], options: JobOptions, rules: Rules) -> str:
    """Say which VAEs of the catalogue latents of this shape would fit."""
    fitting = [
        vae.name
        for vae in rules.catalog.values()
        if vae.facts is not None and _would_fit(vae.layout, shape, options, vae.facts)
    ]
    facts = rules.facts
    channels = f" ({facts.latent_channels} channels)" if facts else ""
    if not fitting:
        return f"; no VAE of the catalogue takes latents of shape {list(shape)}"
    return f"; these latents fit {', '.join(fitting)}, not {rules.vae.name}{channels}"


def _would_fit(
    family: Family, shape: tuple[int, ...], options: JobOptions, facts: VaeFacts
) -> bool:
    try:
        plan(family, shape, options, facts)
    except LatentsError as error:
        # What disagrees with a size that was asked for, or lacks one, has the right channels.
        return not any(fault.field == "latents" for fault in error.errors)
    return True


def _examine_pixels(source: Source, rules: Rules) -> tuple[_Found, Latents]:
    """Check what is to be encoded: a picture's file by its header, or a tensor of pixels.

    Returns:
        The tensor to be stored, and the pixels that it stands for, [B, 3, …].
    """
    if source.kind in PICTURE_TYPES or (source.kind != RAW and is_picture(source.head)):
        return _examine_picture(source, rules)
    found = _find_tensor(
        source, PIXEL_DTYPES, "picture", "a PNG, JPEG or WebP file, or one with pixels, expected: "
    )
    info = found.info
    pixels = Latents(
        shape=planes_shape(info.shape, info.dtype), dtype=info.dtype, bytes=info.nbytes
    )
    check_pixels(pixels, rules)
    return replace(found, info=replace(info, name=PIXELS_NAME)), pixels


def _examine_picture(source: Source, rules: Rules) -> tuple[_Found, Latents]:
    if source.raw.shape or source.raw.dtype:
        raise InvalidRequestError.of(
            FieldError(field="shape", message="a picture's file has no shape and no dtype")
        )
    shape = (1, RGB, *picture_size(source.head))
    pixels = Latents(shape=shape, dtype=UINT8, bytes=math.prod(shape))
    check_pixels(pixels, rules)
    return _Found(TensorInfo(PICTURE_NAME, UINT8, (source.size,)), 0), pixels


def check_pixels(pixels: Latents, rules: Rules) -> None:
    """Check what is to be encoded, [B, 3, …], against the VAE and the limit.

    Raises:
        InvalidRequestError: it does not fit.
        TooLargeError: more pixels than a job may have.
    """
    shape = pixels.shape
    _check_sides(shape, pixels.dtype, rules)
    one_picture = pixels.dtype == UINT8 and len(shape) == 4 and shape[0] == 1
    size = f"{shape[-2]} x {shape[-1]}" if one_picture else str(list(shape))
    _check_pixels(math.prod(shape) // RGB, size, "picture", rules)


def _check_sides(shape: tuple[int, ...], dtype: str, rules: Rules) -> None:
    """Check pixels against the VAE. Pictures are resized to its multiples, tensors are not."""
    facts, family = rules.facts, rules.vae.layout
    if facts is None:
        return
    try:
        family.plan_encode(family.fitted(shape, facts) if dtype == UINT8 else shape, facts)
    except LatentsError as error:
        if len(shape) > 3 and shape[1] == RGB and 0 in family.fitted(shape, facts):
            raise InvalidRequestError.of(
                FieldError(
                    field="picture",
                    message=f"each side must have at least {family.side(facts)} pixels for "
                    f"{rules.vae.name}, not {shape[-2]} x {shape[-1]}",
                )
            ) from error
        raise InvalidRequestError.of(*error.errors) from error


def _check_pixels(pixels: int, size: str, field: str, rules: Rules) -> None:
    if pixels > rules.max_pixels:
        message = f"{size} = {pixels} pixels, at most {rules.max_pixels} in one job"
        raise TooLargeError(message, [FieldError(field=field, message=message)])


def check_length(length: int, limit: int) -> None:
    """Check the length of a body.

    Raises:
        TooLargeError: over the limit.
    """
    if length > limit:
        raise TooLargeError(f"the body has {length} bytes or more, at most {limit} are accepted")
