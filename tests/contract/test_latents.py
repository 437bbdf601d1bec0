"""Latents of every built-in VAE, and pictures to encode: taken, or refused with what would fit."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from darkroom_infra.catalog import Catalog, VaeEntry
from darkroom_infra.families import FAMILIES, VaeFacts
from darkroom_infra.records import transitions
from darkroom_wire.jobs import JobOptions
from tests.conftest import Deployment, make_latents
from tests.contract.conftest import RAW, SAFETENSORS

CATALOG = Catalog.load()
PNG, JPEG, WEBP = ({"Content-Type": f"image/{kind}"} for kind in ("png", "jpeg", "webp"))
SIZE = {"height": 64, "width": 64}

each_vae = pytest.mark.parametrize("vae", CATALOG.values(), ids=lambda vae: vae.name)


def post(
    client: httpx.Client, body: bytes, headers: Mapping[str, str] = SAFETENSORS, **query: Any
) -> httpx.Response:
    """Submit a job."""
    return client.post("/v1/jobs", params=query, content=body, headers=dict(headers))


def check_accepted(client: httpx.Client, answer: httpx.Response, **expected: Any) -> None:
    """Check that a job was accepted, with what its document says, and delete it."""
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert {name: job[name] for name in expected} == expected
    assert client.delete(answer.headers["Location"]).status_code == 204


def check_refused(answer: httpx.Response, at_fault: str, *says: str, status: int = 422) -> None:
    """Check that a problem document names the field at fault, with some words."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    errors = {error["field"]: error["message"] for error in answer.json()["errors"]}
    assert set(errors) == {at_fault}, answer.text
    for words in says:
        assert words in errors[at_fault]


# --- Latents that fit


def layouts(family: str, facts: VaeFacts) -> Iterator[tuple[tuple[int, ...], dict[str, int]]]:
    """List the shapes in which latents of 64 x 64 pixels come, with what has to be told."""
    channels, side, later = facts.latent_channels, 64 // facts.spatial_factor, facts.temporal_factor
    grid, video = (1, channels, side, side), (1, channels, 2, side, side)
    frames = {"num_frames": later + 1}
    match family:
        case "sd" | "sd3":
            yield grid, {}
        case "flux" | "qwen-image":
            yield from ((grid, {}), ((1, side * side // 4, channels * 4), SIZE))
        case "flux2":
            yield from ((grid, {}), ((1, side * side // 4, channels * 4), SIZE))
            yield (1, channels * 4, side // 2, side // 2), {}
        case "sana":
            yield from ((grid, {}), (grid, {"height": 100, "width": 77}))
        case "hunyuan-video" | "wan" | "mochi":
            yield from ((video, {}), (video, SIZE | frames))
        case "ltx-video":
            tokens = (1, 2 * side * side, channels)
            yield from ((video, frames), (tokens, SIZE), (tokens, SIZE | frames))
        case "cogvideox":
            yield from ((video, {}), ((1, 2, *grid[1:]), {}))
            yield (1, 4, *grid[1:]), {"num_frames": 9}
    if family == "qwen-image":
        yield (1, channels, 1, side, side), {}


@each_vae
def test_latents_of_every_built_in_vae(accepting: httpx.Client, vae: VaeEntry) -> None:
    """Every layout that pipelines of the family give is taken, with a batch axis or without."""
    assert vae.facts is not None
    shapes = list(layouts(vae.family, vae.facts))
    assert shapes, f"{vae.family} has no layout here"
    expected = "png" if FAMILIES[vae.family].fps is None else "mp4"
    for shape, told in shapes:
        for given in (shape, shape[1:]):
            answer = post(accepting, make_latents(*given), vae=vae.name, **told)
            described = {"shape": list(given), "dtype": "float32", "bytes": 4 * int(np.prod(given))}
            check_accepted(accepting, answer, format=expected, latents=described)


@each_vae
def test_every_format_of_a_vae(accepting: httpx.Client, vae: VaeEntry) -> None:
    """What the catalogue says that a VAE gives can be asked for, and is not given otherwise."""
    assert vae.facts is not None
    shape, told = next(layouts(vae.family, vae.facts))
    shown = accepting.get(f"/v1/vaes/{vae.name}").json()
    for chosen in ("png", "jpeg", "webp", "safetensors", "mp4"):
        answer = post(accepting, make_latents(*shape), vae=vae.name, format=chosen, **told)
        if chosen in shown["formats"]:
            check_accepted(accepting, answer, format=chosen)
        else:
            check_refused(answer, "format", f"{vae.name} gives png, jpeg, webp, safetensors", "mp4")


def test_the_catalogue_over_http(accepting: httpx.Client) -> None:
    """Family, channels and factors of every built-in VAE are told before a worker has seen it."""
    for shown in accepting.get("/v1/vaes").json()["results"]:
        vae = CATALOG[shown["name"]]
        assert vae.facts is not None
        told = (shown["latent_channels"], shown["spatial_factor"], shown["temporal_factor"])
        assert VaeFacts(*told) == vae.facts
        assert (shown["family"], shown["packed"]) == (vae.family, vae.layout.packed)


# --- Latents that do not fit


@each_vae
def test_latents_that_fit_no_layout(accepting: httpx.Client, vae: VaeEntry) -> None:
    """Other channels and dimensions are refused with the channels that fit and the shape."""
    assert vae.facts is not None
    channels, side = vae.facts.latent_channels, 64 // vae.facts.spatial_factor
    time = () if vae.layout.fps is None else (2,)
    for shape in (
        (1, channels + 1, *time, side, side),
        (channels + 1, *time, side, side),
        (1, channels, *time, side, side, 1),
        (channels,),
    ):
        answer = post(accepting, make_latents(*shape), vae=vae.name)
        check_refused(answer, "latents", f" {channels}", f"{list(shape)}")


@each_vae
def test_a_size_that_disagrees(accepting: httpx.Client, vae: VaeEntry) -> None:
    """Another height and width than the latents give are refused with both."""
    assert vae.facts is not None
    shape, _ = next(layouts(vae.family, vae.facts))
    answer = post(accepting, make_latents(*shape), vae=vae.name, height=512, width=512)
    check_refused(answer, "height", "give 64 x 64 pixels", "512 x 512")


@each_vae
def test_options_for_the_other_kind(accepting: httpx.Client, vae: VaeEntry) -> None:
    """Frames of pictures are refused; frames of a video have to agree with its latents."""
    assert vae.facts is not None
    shape, _ = next(layouts(vae.family, vae.facts))
    body = make_latents(*shape)
    if vae.layout.fps is None:
        for name in ("fps", "num_frames"):
            answer = post(accepting, body, vae=vae.name, **{name: 9})
            check_refused(answer, name, f"{vae.name} gives pictures, which have no frames")
        return
    check_accepted(accepting, post(accepting, body, vae=vae.name, fps=12.5))
    answer = post(accepting, body, vae=vae.name, num_frames=99)
    check_refused(answer, "num_frames", "2 latent frames and give ", "99 frames are ")


@dataclass(frozen=True)
class Misfit:
    """Latents that do not fit: the field at fault, and words of the answer."""

    vae: str
    shape: tuple[int, ...]
    at_fault: str
    says: tuple[str, ...]
    query: dict[str, Any] = field(default_factory=dict)
    status: int = 422


MISFITS = (
    Misfit(
        "sdxl", (1, 16, 8, 8), "latents", ("latents fit flux, sd3, qwen", "not sdxl (4 channels)")
    ),
    Misfit("sdxl", (16, 8, 8), "latents", ("latents fit flux, sd3, qwen", "not sdxl (4 channels)")),
    Misfit("flux", (1, 4, 8, 8), "latents", ("fit sd-v1, sdxl, taesd", "not flux (16 channels)")),
    Misfit("sd3", (1, 4096, 64), "latents", ("fit flux, qwen-image, taef1, not sd3",)),
    Misfit("flux", (1, 16, 3, 8, 8), "latents", ("fit hunyuan-video, wan, cogvideox, not flux",)),
    Misfit("wan", (1, 12, 3, 8, 8), "latents", ("fit mochi, not wan (16 channels)",)),
    Misfit("wan", (1, 3, 16, 8, 8), "latents", ("fit cogvideox, not wan (16 channels)",)),
    Misfit("sana", (1, 128, 8, 8), "latents", ("fit flux2, not sana (32 channels)",)),
    Misfit("qwen-image", (1, 16, 2, 8, 8), "latents", ("[batch, 16, height, width] expected",)),
    Misfit("cogvideox", (1, 3, 4, 8, 8), "latents", ("[batch, frames, 16, height, width]",)),
    Misfit("sd-v1", (1, 7, 8, 8), "latents", ("no VAE of the catalogue takes latents of shape",)),
    Misfit("flux", (1, 16, 64), "height", ("packed latents need height and width in pixels",)),
    Misfit("flux2", (1, 16, 128), "height", ("packed latents need height and width in pixels",)),
    Misfit("flux", (1, 4096, 64), "height", ("in pixels: 1024 x 1024 or another size with 4096",)),
    Misfit("flux2", (1, 32, 5, 8), "latents", ("even height and width, or scaling=none",)),
    Misfit("qwen-image", (1, 16, 64), "height", ("need height and width in pixels",)),
    Misfit("ltx-video", (1, 8, 128), "height", ("need height and width in pixels",)),
    Misfit("flux", (1, 16, 64), "width", ("both",), {"height": 64}),
    Misfit(
        "flux",
        (1, 4096, 64),
        "height",
        (
            "packed: height x width must be 1024 x 1024 or another size with 4096 patches",
            "512 x 768 has 32 x 48 = 1536",
        ),
        {"height": 512, "width": 768},
    ),
    Misfit("taef1", (1, 6, 64), "height", ("must be 32 x 48 or another size with 6 pa",), SIZE),
    Misfit("flux", (1, 16, 60), "latents", ("have 64 channels, [batch, tokens, 64]",), SIZE),
    Misfit("flux2", (1, 16, 64), "latents", ("have 128 channels",), SIZE),
    Misfit("ltx-video", (1, 9, 128), "height", ("2 latent frames", "but 9 came"), SIZE),
    Misfit(
        "ltx-video",
        (1, 8, 128),
        "num_frames",
        ("2 x 2 latents of 32 x 32 pixels for each of 4 latent frames, 16 in all, but 8 came",),
        SIZE | {"num_frames": 25},
    ),
    Misfit(
        "cogvideox",
        (1, 4, 16, 8, 8),
        "num_frames",
        ("latents of shape [1, 4, 16, 8, 8] have 4 latent frames and give 16 frames",),
        {"num_frames": 5},
    ),
    Misfit(
        "sana",
        (1, 32, 2, 2),
        "height",
        ("give 64 x 64 pixels: too far from 1024 x 1024",),
        {"height": 1024, "width": 1024},
    ),
    Misfit(
        "ltx-video",
        (1, 128, 8, 16, 16),
        "latents",
        ("1 x 57 frames of 512 x 512 = 14942208 pixels, at most 4194304",),
        status=413,
    ),
    Misfit(
        "sana",
        (1, 32, 80, 80),
        "latents",
        ("1 x 2560 x 2560 = 6553600 pixels, at most 4194304",),
        {"height": 640, "width": 640},
        status=413,
    ),
)


@pytest.mark.parametrize("case", MISFITS, ids=lambda case: f"{case.vae} {case.shape} {case.query}")
def test_the_answer_says_what_would_fit(accepting: httpx.Client, case: Misfit) -> None:
    """A mistake with a shape, a size or the VAE is answered with what would have been right."""
    body = make_latents(*case.shape, dtype="float16")
    answer = post(accepting, body, vae=case.vae, **case.query)
    check_refused(answer, case.at_fault, *case.says, status=case.status)


def test_the_advice_of_an_answer_is_good(accepting: httpx.Client) -> None:
    """The size that an answer proposes for packed latents is accepted."""
    for tokens in (1, 6, 35, 4096):
        body = make_latents(1, tokens, 64, dtype="float16")
        message = post(accepting, body, vae="flux", **SIZE | {"height": 80}).json()["detail"]
        height, width = message.split(" must be ")[1].split(" or ")[0].split(" x ")
        answer = post(accepting, body, vae="flux", height=height, width=width)
        check_accepted(accepting, answer)


@pytest.mark.parametrize("name", ["sd-v1", "flux", "wan"])
def test_integers_are_no_latents(accepting: httpx.Client, name: str) -> None:
    """uint8 is refused for decoding, in a file and as raw bytes, with the dtypes that are taken."""
    body = safetensors.torch.save({"latents": torch.zeros(1, 4, 8, 8, dtype=torch.uint8)})
    says = ("dtype 'uint8' is not supported", "float32, float16, bfloat16")
    check_refused(post(accepting, body, vae=name), "latents", *says)
    answer = post(accepting, bytes(256), RAW, vae=name, shape="1,4,8,8", dtype="uint8")
    check_refused(answer, "dtype", *says)


# --- ComfyUI's files


def comfy(version: bool, **more: torch.Tensor) -> bytes:
    """Make a ComfyUI `.latent` file, of the newer version or of the older one."""
    marks = {"latent_format_version_0": torch.tensor([])} if version else {}
    latents = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 4, 8, 8)))
    return safetensors.torch.save({"latent_tensor": latents.float(), **marks, **more})


def options_of(intake: Deployment, answer: httpx.Response) -> JobOptions:
    """Read with which options a job was accepted."""
    assert answer.status_code == 202, answer.text
    record = intake.records().run(transitions.read(answer.json()["id"]))
    assert record is not None
    return record.spec.options


@pytest.mark.parametrize(
    ("version", "given", "expected"),
    [
        (True, {}, ("none", None, None)),
        (False, {}, (None, 0.18215, None)),
        (True, {"scaling": "vae"}, ("vae", None, None)),
        (False, {"scaling": "none"}, ("none", None, None)),
        (False, {"scaling_factor": 2, "shift_factor": 1}, (None, 2.0, 1.0)),
    ],
    ids=str,
)
def test_comfyui_files(
    intake: Deployment,
    accepting: httpx.Client,
    version: bool,
    given: dict[str, Any],
    expected: tuple[str | None, float | None, float | None],
) -> None:
    """Newer files hold the VAE's own latents, older ones scaled ones; the caller's word counts."""
    answer = post(accepting, comfy(version), vae="sdxl", **given)
    options = options_of(intake, answer)
    assert (options.scaling, options.scaling_factor, options.shift_factor) == expected
    check_accepted(accepting, answer)


def test_other_tensors_beside_comfyuis(accepting: httpx.Client) -> None:
    """A file with a further tensor is no such file, and says which tensors it has."""
    body = comfy(version=True, extra=torch.zeros(2))
    check_refused(post(accepting, body, vae="sdxl"), "latents", "one tensor expected", "'extra'")


# --- Pictures to encode


def picture(kind: str, width: int = 64, height: int = 64) -> bytes:
    """Make a picture's file."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 100, 50)).save(file, kind)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Make a PNG of a few bytes whose header has a size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk


def pixels(*shape: int, dtype: str = "float32") -> bytes:
    """Make a safetensors file with pixels."""
    return safetensors.torch.save({"pixels": torch.zeros(shape, dtype=getattr(torch, dtype))})


@each_vae
def test_pictures_for_every_built_in_vae(accepting: httpx.Client, vae: VaeEntry) -> None:
    """Every VAE encodes a picture: by its file, or as pixels."""
    described = {"shape": [1, 3, 64, 96], "dtype": "uint8", "bytes": 3 * 64 * 96}
    for body, headers in (
        (picture("PNG", 96, 64), PNG),
        (pixels(1, 64, 96, 3, dtype="uint8"), SAFETENSORS),
    ):
        answer = post(accepting, body, headers, vae=vae.name, task="encode")
        check_accepted(accepting, answer, task="encode", format="safetensors", latents=described)


@pytest.mark.parametrize(
    ("body", "headers", "query", "shape"),
    [
        (picture("JPEG"), JPEG, {}, [1, 3, 64, 64]),
        (picture("WEBP"), WEBP, {}, [1, 3, 64, 64]),
        (picture("JPEG"), SAFETENSORS, {}, [1, 3, 64, 64]),
        (picture("PNG", 101, 67), PNG, {}, [1, 3, 67, 101]),
        (picture("PNG"), PNG, {"scaling": "none"}, [1, 3, 64, 64]),
        (pixels(3, 64, 64), SAFETENSORS, {}, [1, 3, 64, 64]),
        (pixels(2, 3, 64, 64, dtype="bfloat16"), SAFETENSORS, {}, [2, 3, 64, 64]),
        (pixels(64, 64, 3, dtype="uint8"), SAFETENSORS, {}, [1, 3, 64, 64]),
        (pixels(3, 64, 64, dtype="uint8"), SAFETENSORS, {}, [1, 3, 64, 64]),
        (bytes(12288), RAW, {"shape": "64,64,3", "dtype": "uint8"}, [1, 3, 64, 64]),
        (pixels(1, 5, 64, 64, 3, dtype="uint8"), SAFETENSORS, {"vae": "wan"}, [1, 3, 5, 64, 64]),
        (pixels(1, 3, 9, 64, 64), SAFETENSORS, {"vae": "ltx-video"}, [1, 3, 9, 64, 64]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_can_be_encoded(
    accepting: httpx.Client,
    body: bytes,
    headers: Mapping[str, str],
    query: dict[str, Any],
    shape: list[int],
) -> None:
    """Files of three kinds, and pixels in several layouts and dtypes, become jobs."""
    answer = post(accepting, body, headers, **{"vae": "demo", "task": "encode"} | query)
    assert answer.status_code == 202, answer.text
    assert answer.json()["latents"]["shape"] == shape
    check_accepted(accepting, answer)


@dataclass(frozen=True)
class NoPicture:
    """A body that cannot be encoded: the field at fault, and words of the answer."""

    name: str
    body: bytes
    says: tuple[str, ...]
    headers: Mapping[str, str] = field(default_factory=lambda: PNG)
    query: dict[str, Any] = field(default_factory=dict)
    at_fault: str = "picture"
    status: int = 422


TENSOR, VIDEO = {"headers": SAFETENSORS}, {"headers": SAFETENSORS, "query": {"vae": "wan"}}
NO_PICTURES = (
    NoPicture("text", b"hello, this is no picture", ("PNG, JPEG or WebP",)),
    NoPicture("empty", b"", ("PNG, JPEG or WebP",)),
    NoPicture("gif", b"GIF89a" + bytes(20), ("PNG, JPEG or WebP",)),
    NoPicture("gif as a file", b"GIF89a" + bytes(20), ("PNG, JPEG or WebP",), SAFETENSORS),
    NoPicture(
        "integers", pixels(3, 64, 64, dtype="int32"), ("WebP", "dtype 'I32'", "uint8"), SAFETENSORS
    ),
    NoPicture("signature alone", picture("PNG")[:8], ("no size", "cut off")),
    NoPicture("png cut off", picture("PNG")[:18], ("no size", "cut off")),
    NoPicture("jpeg cut off", picture("JPEG")[:30], ("no size", "cut off"), JPEG),
    NoPicture("webp cut off", picture("WEBP")[:16], ("no size", "cut off"), WEBP),
    NoPicture("no pixels", png_header(0, 64), ("no size",)),
    NoPicture("bomb", png_header(60000, 60000), ("3600000000", "4194304"), status=413),
    NoPicture("long bomb", png_header(2**31 - 1, 8), ("4194304",), status=413),
    NoPicture("too small", picture("PNG", 64, 4), ("at least 8 pixels", "not 4 x 64")),
    NoPicture(
        "too small for patches",
        picture("PNG", 64, 12),
        ("at least 16 pixels", "not 12 x 64"),
        query={"vae": "flux"},
    ),
    NoPicture("four channels", pixels(1, 4, 64, 64), ("[batch, 3, height, width]",), **TENSOR),
    NoPicture("grey", pixels(1, 64, 64), ("[batch, 3, height, width]", "[1, 1, 64, 64]"), **TENSOR),
    NoPicture("one dimension", pixels(64), ("[batch, 3, height, width]", "[64]"), **TENSOR),
    NoPicture("one of uint8", pixels(64, dtype="uint8"), ("[batch, 3, height,",), **TENSOR),
    NoPicture("two of uint8", pixels(64, 3, dtype="uint8"), ("[batch, 3, height,",), **TENSOR),
    NoPicture("channels last", pixels(1, 64, 64, 3), ("[batch, 3, height, width]",), **TENSOR),
    NoPicture("video for pictures", pixels(1, 3, 5, 64, 64), ("[batch, 3, height,",), **TENSOR),
    NoPicture("sides", pixels(1, 3, 60, 64), ("multiples of 8", "not 60 x 64"), **TENSOR),
    NoPicture("frames", pixels(1, 3, 6, 64, 64), ("encodes 5 or 9 frames, not 6",), **VIDEO),
    NoPicture("latents", pixels(1, 16, 8, 8), ("[batch, 3, frames, height,",), **VIDEO),
    NoPicture(
        "shape of a file",
        picture("PNG"),
        ("a picture's file has no shape",),
        query={"shape": "1,3,64,64", "dtype": "uint8"},
        at_fault="shape",
    ),
    NoPicture(
        "unknown dtype",
        bytes(12288),
        ("uint8", "float32"),
        RAW,
        {"shape": "64,64,3", "dtype": "int8"},
        "dtype",
    ),
    *(
        NoPicture(name, picture("PNG"), ("an encode job has no such option",), PNG, {name: 9}, name)
        for name in ("quality", "fps", "num_frames")
    ),
    *(
        NoPicture(
            f"format {name}",
            picture("PNG"),
            ("demo encodes to safetensors", name),
            query={"format": name},
            at_fault="format",
        )
        for name in ("png", "mp4")
    ),
)


@pytest.mark.parametrize("case", NO_PICTURES, ids=lambda case: case.name)
def test_what_cannot_be_encoded(accepting: httpx.Client, case: NoPicture) -> None:
    """Bodies that are no picture, or none that the VAE takes, are refused by name."""
    query = {"vae": "demo", "task": "encode"} | case.query
    answer = post(accepting, case.body, case.headers, **query)
    check_refused(answer, case.at_fault, *case.says, status=case.status)


def test_a_size_for_encoding(accepting: httpx.Client) -> None:
    """A picture has its own size: height and width are refused, both by name."""
    answer = post(accepting, picture("PNG"), PNG, vae="demo", task="encode", **SIZE)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["height", "width"]


def test_a_picture_cannot_be_decoded(accepting: httpx.Client) -> None:
    """A picture's file is no latents: its media type is for encoding alone."""
    answer = post(accepting, picture("PNG"), PNG, vae="demo")
    assert answer.status_code == 415
    assert "application/x-safetensors, tensor/binary expected" in answer.json()["detail"]
    assert "image/png" not in answer.json()["detail"].split("one of")[1]


def test_no_prefix_of_a_picture_is_a_defect(accepting: httpx.Client) -> None:
    """A file that is cut off anywhere is refused, or taken where its header is whole."""
    for kind, headers in (("PNG", PNG), ("JPEG", JPEG), ("WEBP", WEBP)):
        content = picture(kind)
        for length in (*range(0, 34, 3), 60, 160, 163, 170):
            answer = post(accepting, content[:length], headers, vae="demo", task="encode")
            assert answer.status_code in {202, 422}, answer.text
            if answer.status_code == 202:
                assert answer.json()["latents"]["shape"] == [1, 3, 64, 64]
                check_accepted(accepting, answer)
            else:
                check_refused(answer, "picture")
