"""`remote_decode` and `remote_encode` as diffusers has them, carried out as durable jobs.

A call is a job: sent again it is not decoded again, and however long it takes, no connection has to
last as long. Only Darkroom is spoken to so, under the address of its diffusers endpoints or under a
catalogue name; diffusers' own functions speak to all others.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from darkroom._client import Client
from darkroom._errors import InvalidRequestError, SettingsError
from darkroom._latents import LatentsLike
from darkroom._results import As, load_library
from darkroom_wire.jobs import Format, Scaling, Task
from darkroom_wire.problems import FieldError

if TYPE_CHECKING:
    import numpy.typing as npt

    from darkroom._latents import Picture, TorchTensor

T = TypeVar("T")

_PATH = re.compile(r"(?P<prefix>.*)/hf/(?P<vae>[^/]+)(?:/(?P<task>decode|encode))?/?")
_KEY = "api_key"
_PASSED_ON = ("priority", "num_frames")
_MEANINGLESS = ("redirect", "wait")
"""How a long call is answered; a job needs no such thing."""

_IMAGE_FORMATS = {"jpg": Format.JPEG, "jpeg": Format.JPEG, "png": Format.PNG}


@dataclass(frozen=True)
class Endpoint:
    """Where a call goes: a VAE of a service; the address None is the configured one."""

    vae: str
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    options: Mapping[str, str] = field(default_factory=dict)


def remote_decode(
    endpoint: str,
    tensor: TorchTensor | npt.NDArray[Any],
    processor: Any = None,
    do_scaling: bool = True,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    output_type: Literal["mp4", "pil", "pt"] = "pil",
    return_type: Literal["mp4", "pil", "pt"] = "pil",
    image_format: Literal["png", "jpg"] = "jpg",
    partial_postprocess: bool = False,
    input_tensor_type: Literal["binary"] = "binary",
    output_tensor_type: Literal["binary"] = "binary",
    height: int | None = None,
    width: int | None = None,
) -> Any:
    """Decode as `diffusers.utils.remote_utils.remote_decode` does, by a durable job.

    The settings, retries and errors are those of `Client`. A tensor comes back as a torch tensor if
    torch latents were given, else as a numpy array. Where several pictures or videos were sent,
    a list of what one would be comes back.

    Args:
        endpoint: A catalogue name, of the service at `DARKROOM_URL`; or a Darkroom address, as
            `https://host/hf/NAME/decode`. It may have the key as `user:KEY@host` or `?api_key=KEY`,
            and further `priority` and `num_frames`.
        tensor: The latents.
        processor: diffusers' `VaeImageProcessor` or `VideoProcessor`. With `output_type="pt"` it
            makes the pictures of `return_type="pil"`; with `output_type="pil"` anything but None
            means that pictures are made from a tensor that was not compressed.
        do_scaling: Whether the VAE's scaling, or the factors given here, are still to be undone.
        scaling_factor: The latents are divided by it, instead of the VAE's own.
        shift_factor: Added after the division.
        output_type: What travels: `pil`, a picture in `image_format`, or with a processor a tensor;
            `pt`, the VAE's output, or with `partial_postprocess` pictures without loss; `mp4`.
        return_type: What comes back: `pil`, `pt` for a tensor, or `mp4` for bytes.
        image_format: `jpg` or `png`.
        partial_postprocess: Whether `output_type="pt"` gives pixels, uint8 [B, H, W, 3] or of a
            video [F, H, W, 3], instead of values in [-1, 1].
        input_tensor_type: Ignored, as by diffusers.
        output_tensor_type: Ignored, as by diffusers.
        height: In pixels; packed latents need it.
        width: In pixels; packed latents need it.

    Raises:
        SettingsError: `endpoint` is no Darkroom.
        InvalidRequestError: arguments that do not go together, or do not fit the VAE.
        DarkroomError: see the tree in `darkroom`.
    """
    del input_tensor_type, output_tensor_type
    where = read_endpoint(endpoint, Task.DECODE)
    form = _choose_form(
        output_type, return_type, image_format, processor, partial=partial_postprocess
    )
    options = {"format": form, "height": height, "width": width}
    options |= _scaling(do_scaling, scaling_factor, shift_factor)
    as_numbers: As = "torch" if _is_torch(tensor) else "numpy"
    if output_type == "mp4":
        return _develop(where, tensor, options, "bytes")
    if output_type == "pt" and partial_postprocess:
        if return_type == "pt":
            return _only_video(_develop(where, tensor, options, as_numbers))
        return _unlist(_images(_only_video(_develop(where, tensor, options, "numpy"))))
    if form is not Format.SAFETENSORS:
        return _named(_develop(where, tensor, options, "pil"), image_format)
    if output_type == "pt" and return_type == "pil":
        return _unlist(_postprocess(processor, _develop(where, tensor, options, "torch")))
    decoded = _develop(where, tensor, options, as_numbers)
    if output_type == "pt":
        return decoded
    unit = _to_unit(decoded)
    return unit if return_type == "pt" else _to_pictures(unit)


def remote_encode(
    endpoint: str,
    image: TorchTensor | npt.NDArray[Any] | Picture,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
) -> Any:
    """Encode as `diffusers.utils.remote_utils.remote_encode` does, by a durable job.

    Args:
        endpoint: As for `remote_decode`, but `https://host/hf/NAME/encode`.
        image: A `PIL.Image`, or a tensor [B, 3, H, W] in [-1, 1].
        scaling_factor: The latents are multiplied by it; without factors they stay as they are.
        shift_factor: Taken away before that.

    Returns:
        The latents: a numpy array if an array was given, or where torch is not loaded; else a torch
        tensor.

    Raises:
        SettingsError: `endpoint` is no Darkroom.
        DarkroomError: see the tree in `darkroom`.
    """
    where = read_endpoint(endpoint, Task.ENCODE)
    given = scaling_factor is not None or shift_factor is not None
    options = {"task": Task.ENCODE} | _scaling(given, scaling_factor, shift_factor)
    return _develop(where, image, options, "numpy" if _is_numpy(image) else "auto")


def read_endpoint(endpoint: str, task: Task) -> Endpoint:
    """Tell a catalogue name from an address, and take the address apart.

    Raises:
        SettingsError: it is neither a name nor the address of a Darkroom.
    """
    if endpoint and "/" not in endpoint:
        return Endpoint(endpoint)
    try:
        parts = urlsplit(endpoint)
        found = _PATH.fullmatch(parts.path)
    except ValueError:
        found = None
    if found is None or parts.scheme not in ("http", "https"):
        raise SettingsError(
            f"endpoint: {_without_secrets(endpoint)} is no name from the catalogue and no address "
            f"such as http://127.0.0.1:8000/hf/sdxl/{task}; to services other than Darkroom speak "
            "with diffusers.utils.remote_utils"
        )
    if found["task"] not in (None, task):
        raise SettingsError(f"endpoint: {found['task']!r} at its end, but this is remote_{task}")
    query = dict(parse_qsl(parts.query))
    if unknown := sorted(query.keys() - {_KEY, *_PASSED_ON, *_MEANINGLESS}):
        known = ", ".join((_KEY, *_PASSED_ON))
        raise SettingsError(f"endpoint: {unknown[0]!r} in its query, which takes {known}")
    host = parts.netloc.rpartition("@")[2]
    password = unquote(parts.password) if parts.password else None
    return Endpoint(
        vae=unquote(found["vae"]),
        url=urlunsplit((parts.scheme, host, found["prefix"], "", "")),
        api_key=password or query.get(_KEY),
        options={name: query[name] for name in _PASSED_ON if name in query},
    )


def _without_secrets(endpoint: str) -> str:
    """Show an address without what may be a key."""
    return repr(re.sub(r"//[^/@]*@", "//…@", endpoint.partition("?")[0]))


def _choose_form(
    output_type: str, return_type: str, image_format: str, processor: Any, *, partial: bool
) -> Format:
    """Choose what the job is to make.

    Raises:
        InvalidRequestError: arguments that do not go together.
    """
    if image_format not in _IMAGE_FORMATS:
        raise _refuse("image_format", f"jpg or png expected, not {image_format!r}")
    match output_type, return_type:
        case "mp4", "mp4":
            return Format.MP4
        case "pil", "pil" if processor is None:
            return _IMAGE_FORMATS[image_format]
        case "pil", "pil" | "pt" if processor is not None:
            return Format.SAFETENSORS
        case "pt", "pil" | "pt" if partial:
            # The same pixels as uint8 values, and less of them on the way.
            return Format.PNG
        case "pt", "pil" if not hasattr(processor, "postprocess"):
            raise _refuse(
                "processor",
                "a VaeImageProcessor or VideoProcessor is required to make pictures of a tensor",
            )
        case "pt", "pil" | "pt":
            return Format.SAFETENSORS
    raise _refuse(
        "return_type",
        f'output_type="{output_type}" does not give return_type="{return_type}"'
        + (" without a processor" if (output_type, return_type) == ("pil", "pt") else ""),
    )


def _refuse(name: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(
        status=422,
        title="Invalid arguments",
        detail="not sent, because they do not go together",
        errors=(FieldError(field=name, message=message),),
    )


def _scaling(wanted: bool, scale: float | None, shift: float | None) -> dict[str, Any]:
    """Say what diffusers' three arguments mean; without `wanted` factors do not count."""
    if not wanted:
        return {"scaling": Scaling.NONE}
    if scale is None and shift is None:
        return {"scaling": Scaling.VAE}
    return {"scaling_factor": scale, "shift_factor": shift}


def _develop(where: Endpoint, given: LatentsLike, options: dict[str, Any], as_: As) -> Any:
    """Have a job done, and give what it made."""
    with Client(where.url, where.api_key) as client:
        return client.submit(given, where.vae, **{**options, **where.options}).result(as_=as_)


def _only_video(pixels: Any) -> Any:
    """Give one video's frames without a batch, as diffusers' endpoints do."""
    return pixels[0] if pixels.ndim == 5 and len(pixels) == 1 else pixels


def _unlist(made: Any) -> Any:
    return made[0] if isinstance(made, list) and len(made) == 1 else made


def _named(pictures: Any, image_format: str) -> Any:
    """Call the format as diffusers does."""
    for picture in pictures if isinstance(pictures, list) else [pictures]:
        if not isinstance(picture, list):  # frames of a video have none
            picture.format = "png" if image_format == "png" else "jpeg"
    return pictures


def _to_unit(decoded: Any) -> Any:
    """Go from [-1, 1] to [0, 1]; a video's frames before its channels."""
    unit = (decoded * 0.5 + 0.5).clip(0, 1)
    return _only_video(unit.swapaxes(1, 2) if unit.ndim == 5 else unit)


def _to_pictures(unit: Any) -> list[Any]:
    """Make pictures of [B, 3, H, W] in [0, 1], or for videos [B, F, 3, H, W] lists of pictures."""
    unit = unit.float().numpy() if _is_torch(unit) else unit
    return _images((unit * 255).round().astype("uint8").swapaxes(-3, -2).swapaxes(-2, -1))


def _images(pixels: npt.NDArray[Any]) -> list[Any]:
    """Make pictures of uint8 [B, H, W, 3], or for videos [B, F, H, W, 3] lists of pictures."""
    if pixels.ndim == 5:
        return [_images(video) for video in pixels]
    image = load_library("PIL.Image", "a picture needs Pillow")
    return [image.fromarray(picture) for picture in pixels]


def _postprocess(processor: Any, decoded: Any) -> Sequence[Any]:
    """Have diffusers' processor make the pictures: lists of frames for videos."""
    process = getattr(processor, "postprocess_video", processor.postprocess)
    made: Sequence[Any] = process(decoded, output_type="pil")
    return made


def _is_torch(given: object) -> bool:
    return _is_of(given, "torch", "Tensor")


def _is_numpy(given: object) -> bool:
    return _is_of(given, "numpy", "ndarray")


def _is_of(given: object, module: str, name: str) -> bool:
    """Look a class up among the loaded modules: what nobody has loaded, nothing is of."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(given, getattr(loaded, name))
