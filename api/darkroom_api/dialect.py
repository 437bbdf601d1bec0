"""The dialect that diffusers speaks with remote VAEs: what a call asks for.

Clients: `diffusers.utils.remote_utils`, and the nodes and programs that copied it. The body is a
raw tensor, or for encoding a picture; older clients wrap it in JSON, in base64. What is to be made
of it stands in the query, in Python's spelling, and partly in `Accept`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from starlette.concurrency import run_in_threadpool

from darkroom_infra.catalog import VaeEntry
from darkroom_infra.families import plan
from darkroom_infra.records import Rendering
from darkroom_wire.jobs import Format, JobOptions, Priority, Scaling, Task
from darkroom_wire.problems import FieldError

from . import intake
from .errors import (
    InvalidRequestError,
    MalformedRequestError,
    TooLargeError,
    UnsupportedMediaError,
)
from .headers import MAX_WAIT_SECONDS
from .intake import RAW, RawTensor, Rules, Submission
from .pictures import PICTURE_TYPES

HOP_SECONDS: Final = 25
"""How long a call with `redirect=true` waits before it answers with a redirect.

Proxies often give up after 30 seconds, and `requests` follows 30 redirects.
"""

BASE64: Final = "tensor/base64"
JSON: Final = "application/json"
ENVELOPE_BYTES: Final = 64 * 1024
"""What the JSON around the base64 may take."""

_FACTORS: Final = ("scaling_factor", "shift_factor")


class OutputType(StrEnum):
    """What a decode answers with: one picture, a tensor, or a video's file."""

    PIL = "pil"
    PT = "pt"
    MP4 = "mp4"


def _as_texts(value: object) -> object:
    """Take a shape in JSON, a list of numbers, as the query has it, a list of texts."""
    lengths = value if isinstance(value, list) else [value]
    return [str(length) if type(length) is int else length for length in lengths]


class Parameters(BaseModel):
    """What every call may say of its tensor and its job, in the query or in a JSON body.

    Raises:
        pydantic.ValidationError: names each parameter at fault, unknown ones included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: Annotated[list[str], BeforeValidator(_as_texts)] = Field(
        [], description="of a raw tensor: shape=1&shape=4&…"
    )
    dtype: str | None = Field(None, description="of a raw tensor: float32, float16, bfloat16")
    do_scaling: bool = Field(
        False, description="apply the VAE's own scaling, where no factor is given"
    )
    scaling_factor: float | None = Field(
        None,
        allow_inf_nan=False,
        description="decode: x / scaling_factor + shift_factor; encode: the reverse",
    )
    shift_factor: float | None = Field(None, allow_inf_nan=False)
    input_tensor_type: str | None = Field(None, description="ignored: Content-Type says it")
    output_tensor_type: str | None = Field(None, description="ignored: Accept says it")
    priority: Priority = Priority.NORMAL


class DecodeParameters(Parameters):
    """What a decode may say."""

    output_type: OutputType = OutputType.PIL
    image_format: Literal["jpg", "jpeg", "png"] | None = Field(
        None, description="of the picture for output_type=pil (jpg)"
    )
    partial_postprocess: bool = Field(
        False, description="output_type=pt: pixels in uint8, channels last"
    )
    height: int | None = Field(None, description="pixels, for packed latents")
    width: int | None = Field(None, description="pixels, for packed latents")
    num_frames: int | None = Field(None, description="frames, for video")


class EncodeParameters(Parameters):
    """What an encode may say."""

    dtype: str | None = Field(
        None, description="of a raw tensor: float32, float16, bfloat16, uint8"
    )


class Waiting(BaseModel):
    """How a call is answered that takes long, and who calls. Only in the query."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    redirect: bool = Field(
        False,
        description="answer a long call with 303, for proxies that allow no long answers; "
        "clients that follow redirects notice nothing",
    )
    wait: int | None = Field(
        None,
        ge=1,
        le=MAX_WAIT_SECONDS,
        description=f"with redirect=true: seconds until the redirect ({HOP_SECONDS})",
    )
    api_key: SecretStr | None = Field(
        None, description="as Authorization: Bearer, for clients that can set no header"
    )

    @model_validator(mode="after")
    def _check_wait(self) -> Self:
        if self.wait is not None and not self.redirect:
            raise ValueError("wait: only redirect=true has a time after which it redirects")
        return self


class DecodeQuery(DecodeParameters, Waiting):
    """The query of a decode."""


class EncodeQuery(EncodeParameters, Waiting):
    """The query of an encode."""


class ResultQuery(Waiting):
    """The query of the address that redirects lead to."""

    base64: bool = Field(False, description="answer with a tensor in JSON, in base64")


class Envelope(BaseModel):
    """The JSON body of older clients."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: str = Field(description="the body in base64")
    parameters: dict[str, Any] | None = Field(
        None, description="as in the query, which counts where both say something"
    )


P = TypeVar("P", bound=Parameters)


@dataclass(frozen=True)
class Received:
    """A call as it was understood. `in_base64` tells how a tensor is to be answered."""

    body: bytes
    kind: str
    options: JobOptions
    raw: RawTensor
    rendering: Rendering
    one_only: bool
    in_base64: bool


async def read_decode(request: Request, query: DecodeQuery, vae: VaeEntry, limit: int) -> Received:
    """Read a call for decoding.

    Raises:
        ApiError: it cannot be understood, or is too large.
    """
    body, parameters, wrapped = await _read(request, query, DecodeParameters, limit)
    accepted = accepted_types(request)
    form = _form(parameters, vae, accepted)
    sizes = {name: getattr(parameters, name) for name in ("height", "width", "num_frames")}
    return Received(
        body=body,
        kind=RAW,
        options=_options(parameters, vae, task=Task.DECODE, format=form.format, **sizes),
        raw=RawTensor(tuple(parameters.shape), parameters.dtype),
        rendering=form.rendering,
        one_only=form.one_only,
        in_base64=_in_base64(wrapped, accepted),
    )


async def read_encode(request: Request, query: EncodeQuery, vae: VaeEntry, limit: int) -> Received:
    """Read a call for encoding.

    Raises:
        ApiError: it cannot be understood, or is too large.
    """
    body, parameters, wrapped = await _read(request, query, EncodeParameters, limit)
    raw = RawTensor(tuple(parameters.shape), parameters.dtype)
    kind = _media_type(request)
    if kind not in PICTURE_TYPES:
        # Which kind of picture it is, its first bytes tell.
        kind = RAW if raw.shape or raw.dtype or kind == RAW else PICTURE_TYPES[0]
    return Received(
        body=body,
        kind=kind,
        options=_options(parameters, vae, task=Task.ENCODE),
        raw=raw,
        rendering=Rendering.DECODED,
        one_only=False,
        in_base64=_in_base64(wrapped, accepted_types(request)),
    )


def prepare(received: Received, rules: Rules) -> Submission:
    """Check a call as `/v1/jobs` does, and that what it will give fits into one answer.

    Raises:
        ApiError: options or body do not fit the VAE or each other.
    """
    submission = intake.prepare(
        received.body, received.kind, received.raw, received.options, rules, received.rendering
    )
    if received.one_only and rules.facts is not None:
        family, shape = rules.vae.layout, submission.latents.shape
        check_one(plan(family, shape, submission.options, rules.facts).count, rules.vae)
    return submission


def check_one(count: int, vae: VaeEntry) -> None:
    """Check that there is one picture or video where the answer has room for one.

    Raises:
        InvalidRequestError: there are several.
    """
    if count == 1:
        return
    things = "pictures" if vae.layout.fps is None else "videos"
    raise InvalidRequestError.of(
        FieldError(
            field="shape",
            message=f"{count} {things} do not fit into this kind of answer: send them one by one, "
            "or use output_type=pt with partial_postprocess=False",
        )
    )


def accepted_types(request: Request) -> frozenset[str]:
    """Read the media types in `Accept`, whatever their weight."""
    values = ",".join(request.headers.getlist("accept")).split(",")
    return frozenset(value.partition(";")[0].strip().lower() for value in values)


async def _read(
    request: Request, query: BaseModel, own: type[P], limit: int
) -> tuple[bytes, P, bool]:
    """Read the body, and the parameters from wherever they are; tell whether they were wrapped."""
    given = {
        name: getattr(query, name) for name in own.model_fields if name in request.query_params
    }
    kind = _media_type(request)
    _check_kind(request, kind, own, given)
    if kind not in (BASE64, JSON):
        return await intake.read_body(request, limit), _validated(own, given, "query"), False
    text = await intake.read_body(request, 4 * (limit // 3 + 1) + ENVELOPE_BYTES)
    body, parameters = await run_in_threadpool(_unwrap, text, limit)
    said = {name: value for name, value in parameters.items() if value is not None}
    return body, _validated(own, said | given, "body"), True


def _check_kind(request: Request, kind: str, own: type[P], given: Mapping[str, object]) -> None:
    decodes = own is DecodeParameters
    accepted = (RAW, BASE64, JSON, *(() if decodes else PICTURE_TYPES))
    # A client that says nothing means a tensor, or for encoding maybe a picture.
    if kind in accepted or (not kind and (not decodes or {"shape", "dtype"} <= given.keys())):
        return
    raise UnsupportedMediaError(
        f"Content-Type {request.headers.get('content-type', '')[:100]!r}: one of "
        f"{', '.join(accepted)} expected"
        + (", or none with shape and dtype in the query" if decodes else "")
    )


def _media_type(request: Request) -> str:
    """Read `Content-Type`; '' where there is none."""
    return intake.media_type(request) if request.headers.get("content-type", "").strip() else ""


def _unwrap(text: bytes, limit: int) -> tuple[bytes, dict[str, Any]]:
    """Take a body and its parameters out of an `Envelope`."""
    try:
        envelope = Envelope.model_validate_json(text)
    except ValidationError as error:
        if any(fault["type"] == "json_invalid" for fault in error.errors(include_input=False)):
            raise MalformedRequestError.of(
                FieldError(field="body", message='JSON expected: {"inputs": "<base64>"}')
            ) from error
        raise _refusal(error, "body") from error
    try:
        body = base64.b64decode(envelope.inputs, validate=True)
    except ValueError as error:
        raise InvalidRequestError.of(
            FieldError(field="inputs", message=f"base64 expected: {error}")
        ) from error
    if len(body) > limit:
        raise TooLargeError(f"inputs has {len(body)} bytes, at most {limit} are accepted")
    return body, envelope.parameters or {}


def _validated(model: type[P], values: Mapping[str, object], where: str) -> P:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _refusal(error, where) from error


def _refusal(error: ValidationError, where: str) -> RequestValidationError:
    """Make the error that FastAPI raises for a query itself."""
    return RequestValidationError(
        [{**fault, "loc": (where, *fault["loc"])} for fault in error.errors(include_url=False)]
    )


def _options(parameters: Parameters, vae: VaeEntry, **further: object) -> JobOptions:
    """Say what the job is to do, in the terms of `/v1/jobs`."""
    factors = {name: getattr(parameters, name) for name in _FACTORS}
    own = Scaling.VAE if parameters.do_scaling else Scaling.NONE
    scaling = own if not any(value is not None for value in factors.values()) else None
    values = {"vae": vae.name, "priority": parameters.priority, "scaling": scaling}
    try:
        return JobOptions.model_validate(values | factors | further)
    except ValidationError as error:
        raise _refusal(error, "query") from error


@dataclass(frozen=True)
class _Form:
    """What a job is to make. `one_only`: the answer has room for one picture or video."""

    format: Format
    rendering: Rendering
    one_only: bool


def _form(parameters: DecodeParameters, vae: VaeEntry, accepted: frozenset[str]) -> _Form:
    """Say what a job has to make, so that its result can be answered as it was asked for."""
    is_video = vae.layout.fps is not None
    match parameters.output_type:
        case OutputType.PT if parameters.partial_postprocess:
            return _Form(Format.SAFETENSORS, Rendering.PIXELS, is_video)
        case OutputType.PT:
            return _Form(Format.SAFETENSORS, Rendering.DECODED, one_only=False)
        case OutputType.MP4:
            if not is_video:
                raise _refuse_output(f"mp4: {vae.name} gives pictures; use pil or pt")
            return _Form(Format.MP4, Rendering.DECODED, one_only=True)
        case OutputType.PIL:
            # diffusers expects a tensor in [0, 1] where its caller gave a processor.
            if is_video or accepted & {RAW, BASE64}:
                _check_accepted(vae, accepted, is_video)
                return _Form(Format.SAFETENSORS, Rendering.UNIT, is_video)
            return _Form(_picture_format(parameters, accepted), Rendering.DECODED, one_only=True)


def _check_accepted(vae: VaeEntry, accepted: frozenset[str], is_video: bool) -> None:
    """Refuse a video as a picture: the caller's own error would only say that it cannot read it."""
    if is_video and accepted <= set(PICTURE_TYPES):
        raise _refuse_output(
            f"pil: {vae.name} gives videos, which are no picture; use mp4 or pt, or give a "
            "processor, so that Accept is tensor/binary"
        )


def _picture_format(parameters: DecodeParameters, accepted: frozenset[str]) -> Format:
    """The query decides, then `Accept`; JPEG where neither says anything."""
    if parameters.image_format is not None:
        return Format.PNG if parameters.image_format == "png" else Format.JPEG
    is_png = "image/png" in accepted and "image/jpeg" not in accepted
    return Format.PNG if is_png else Format.JPEG


def _refuse_output(message: str) -> InvalidRequestError:
    return InvalidRequestError.of(FieldError(field="output_type", message=message))


def _in_base64(wrapped: bool, accepted: frozenset[str]) -> bool:
    """Answer a tensor as the call came, unless the call says otherwise."""
    return BASE64 in accepted or (wrapped and RAW not in accepted)
