"""The real `diffusers.utils.remote_utils`, unmodified, against a real API and worker.

It sends the memory that begins at a tensor's address: only contiguous tensors arrive as they are.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderTiny
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.utils.remote_utils import remote_decode, remote_encode
from diffusers.video_processor import VideoProcessor
from PIL import Image

import darkroom_worker
from tests.conftest import Deployment, Servers, eventually
from tests.pipelines import CASES, Size
from tests.vaes import make_kl, write_catalog

KEY = "k:y@of/anna"
FLOATS, BYTES = 2e-4, 1
"""How far values and pixels may be from those that were decoded locally."""

SIDE = Size(height=48, width=32)
PIPELINES = {
    "wan-2.1": Size(48, 32, num_frames=9),
    "cogvideox-1.5": Size(32, 48, num_frames=13),
    "ltx-video": Size(64, 96, num_frames=9),
}
DEMO = Path(darkroom_worker.__file__).parent / "vaes" / "demo"
PHOTOGRAPH = Path(__file__).parents[2] / "demo" / "latents" / "coffee.safetensors"

pytestmark = pytest.mark.filterwarnings("ignore:.*do_scaling:FutureWarning")


@dataclass(frozen=True)
class Vae:
    """A VAE, latents for it, and what its pipeline would tell the remote one."""

    module: Any
    latents: torch.Tensor
    factors: dict[str, float]
    sent: torch.Tensor
    size: dict[str, int] = field(default_factory=dict)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode locally what is scaled for the VAE."""
        with torch.inference_mode():
            decoded: torch.Tensor = self.module.decode(latents, return_dict=False)[0]
        assert decoded.std() > 0.05, "too little contrast to tell a wrong scale"
        return decoded

    @cached_property
    def decoded(self) -> torch.Tensor:
        """What the VAE makes of the latents, scaled by its own factors."""
        return self.decode(self.unscaled(self.factors))

    def unscaled(self, factors: dict[str, float]) -> torch.Tensor:
        """Undo the scaling, as the pipelines do it."""
        latents = self.latents / factors.get("scaling_factor", 1.0)
        return latents + factors.get("shift_factor", 0.0)


def make_vaes() -> dict[str, Vae]:
    """Make one VAE of each kind: pictures, packed latents, videos."""
    torch.manual_seed(0)
    rows, columns = SIDE.height // 8, SIDE.width // 8
    own = {"scaling_factor": 0.18215}
    sd = torch.randn(1, 4, rows, columns)
    both = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    flux = torch.randn(1, 16, rows, columns)
    video = torch.randn(1, 16, 2, rows, columns)
    hunyuan = CASES["hunyuan-video"].make_vae()
    factor = {"scaling_factor": float(hunyuan.config.scaling_factor)}  # type: ignore[union-attr, arg-type]
    packed = FluxPipeline._pack_latents(flux, 1, 16, rows, columns)
    size = {"height": SIDE.height, "width": SIDE.width}
    return {
        "sd": Vae(make_kl(4, **own), sd, own, sd),
        "flux": Vae(make_kl(16, **both), flux, both, packed, size),
        "hunyuan-video": Vae(hunyuan, video, factor, video),
    }


@pytest.fixture(scope="module")
def vaes() -> dict[str, Vae]:
    """The VAEs, for decoding locally."""
    return make_vaes()


@pytest.fixture(scope="module")
def darkroom(
    servers: Servers, vaes: dict[str, Vae], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """An API that wants keys, and a worker, which know those VAEs and some pipelines'."""
    folder = tmp_path_factory.mktemp("remote")
    entries = {}
    for name, vae in vaes.items():
        vae.module.save_pretrained(folder / name)
        entries[name] = {"family": name, "source": str(folder / name), "dtype": "float32"}
    make_kl(4, force_upcast=False).save_pretrained(folder / "half")
    for dtype in ("bfloat16", "float16"):
        entries[f"sd-{dtype}"] = entries["sd"] | {"source": str(folder / "half"), "dtype": dtype}
    for name in PIPELINES:
        CASES[name].make_vae().save_pretrained(folder / name)  # type: ignore[operator]
        entries[name] = {"family": CASES[name].family, "source": str(folder / name)}
    catalog = write_catalog(folder, entries)
    with servers.deploy(folder, catalog=str(catalog), api_keys=f"anna:{KEY}") as deployment:
        deployment.start_api()
        deployment.start_worker()
        yield deployment


def endpoint(darkroom: Deployment, path: str, **query: Any) -> str:
    """Give an endpoint's address, with the key in it."""
    given = httpx.QueryParams({"api_key": KEY, **query})
    return f"{darkroom.api_url}/hf/{path}?{given}"


@dataclass(frozen=True)
class Mode:
    """How `remote_decode` is called."""

    output_type: str
    return_type: str
    processor: type[VaeImageProcessor] | None = None
    partial_postprocess: bool = False
    image_format: str = "jpg"

    def __str__(self) -> str:
        name = self.processor.__name__ if self.processor else "none"
        partial = "partial" if self.partial_postprocess else "whole"
        return f"{self.output_type}-{self.return_type}-{name}-{partial}-{self.image_format}"

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the call."""
        return {
            "output_type": self.output_type,
            "return_type": self.return_type,
            "processor": self.processor() if self.processor else None,
            "partial_postprocess": self.partial_postprocess,
            "image_format": self.image_format,
        }


def modes(own: type[VaeImageProcessor]) -> Iterator[Mode]:
    """List every way of calling for which the client itself has an answer."""
    for kind in ("jpg", "png"):
        for partial in (False, True):
            for returned in ("pil", "pt"):
                yield Mode("pil", returned, own, partial, kind)
                yield Mode("pt", returned, own, partial, kind)
                if returned == "pt" or partial:
                    yield Mode("pt", returned, None, partial, kind)


PICTURE_MODES = [
    *modes(VaeImageProcessor),
    *(
        Mode("pil", "pil", None, partial, kind)
        for partial in (False, True)
        for kind in ("jpg", "png")
    ),
]
VIDEO_MODES = [
    *modes(VideoProcessor),
    *(Mode("mp4", "mp4", processor) for processor in (None, VideoProcessor)),
]


def to_unit(decoded: torch.Tensor) -> torch.Tensor:
    """Bring what a VAE gave into [0, 1]."""
    return (decoded / 2 + 0.5).clamp(0, 1)


def to_pixels(decoded: torch.Tensor) -> np.ndarray[Any, Any]:
    """Bring what a VAE gave, [B, 3, H, W] or [B, 3, F, H, W], into pixels, the channels last."""
    pixels = (to_unit(decoded).movedim(1, -1) * 255).round()
    return pixels.to(torch.uint8).numpy()


def psnr(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> float:
    """Compare pixels, in dB."""
    error = np.mean((first.astype(float) - second.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def as_jpeg(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Say what a JPEG leaves of pixels: the colours of random weights lose the most."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file))


def assert_pixels(got: Any, expected: np.ndarray[Any, Any]) -> None:
    """Check pictures, or pixels, one by one."""
    pictures = got if isinstance(got, list) else [got]
    pixels = np.stack([np.asarray(picture, "int16") for picture in pictures])
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= BYTES


def assert_values(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Check a tensor."""
    assert got.shape == expected.shape
    assert (got.float() - expected.float()).abs().max() <= FLOATS


def check(mode: Mode, got: Any, decoded: torch.Tensor) -> None:
    """Check what a call gave against what was decoded locally; videos lack the batch axis."""
    is_video = decoded.ndim == 5
    pixels = to_pixels(decoded)
    frames = pixels[0] if is_video else pixels
    if mode.output_type == "pil" and mode.processor is None:
        assert got.format == {"jpg": "jpeg"}.get(mode.image_format, mode.image_format)
        if mode.image_format == "png":
            assert_pixels(got, pixels)
        else:
            assert psnr(np.asarray(got), as_jpeg(pixels[0])) > 30
    elif mode.return_type == "pil":
        assert_pixels(got, frames)
        assert isinstance(got, list) == (
            is_video or (mode.output_type == "pil" and mode.processor is not None)
        )
    elif mode.output_type == "pt" and mode.partial_postprocess:
        assert got.dtype == torch.uint8
        assert_pixels(list(got.numpy()), frames)
    elif mode.output_type == "pt":
        assert got.dtype == torch.float32
        assert_values(got, decoded)
    else:
        unit = to_unit(decoded)
        assert_values(got, unit[0].transpose(0, 1) if is_video else unit)


@pytest.mark.parametrize("mode", PICTURE_MODES, ids=str)
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_pictures_in_every_mode(
    darkroom: Deployment, vaes: dict[str, Vae], name: str, mode: Mode
) -> None:
    """Every mode of the client gives what decoding locally gives, from packed latents too."""
    vae = vaes[name]
    got = remote_decode(
        endpoint(darkroom, f"{name}/decode"), vae.sent, **vae.factors, **vae.size, **mode.arguments
    )
    check(mode, got, vae.decoded)


@pytest.mark.parametrize("mode", VIDEO_MODES, ids=str)
def test_videos_in_every_mode(darkroom: Deployment, vaes: dict[str, Vae], mode: Mode) -> None:
    """Every mode of the client gives what decoding locally gives, for a video."""
    vae = vaes["hunyuan-video"]
    address = endpoint(darkroom, "hunyuan-video/decode")
    got = remote_decode(address, vae.sent, **vae.factors, **mode.arguments)
    if mode.output_type != "mp4":
        check(mode, got, vae.decoded)
        return
    with av.open(io.BytesIO(got)) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert np.stack(frames).shape == (5, SIDE.height, SIDE.width, 3)


def test_a_photograph_as_jpeg(darkroom: Deployment) -> None:
    """A JPEG of a real photograph is hardly to be told from what was decoded locally."""
    latents = next(iter(safetensors.torch.load_file(PHOTOGRAPH).values()))
    latents = latents[:, :, :32, :32].contiguous()
    got = remote_decode(endpoint(darkroom, "demo/decode"), latents, do_scaling=False)
    vae = AutoencoderTiny.from_pretrained(DEMO)
    with torch.inference_mode():
        decoded = vae.decode(latents.float(), return_dict=False)[0]
    assert psnr(np.asarray(got), to_pixels(decoded)[0]) > 32


SCALINGS: dict[str, dict[str, Any]] = {
    "the VAE's own": {},
    "none": {"do_scaling": False},
    "null": {"do_scaling": None},
    "factor": {"scaling_factor": 0.7},
    "both": {"scaling_factor": 0.7, "shift_factor": -0.3},
    "shift alone": {"shift_factor": -0.3},
    "given, but not wanted": {"do_scaling": False, "scaling_factor": 0.7, "shift_factor": 9.0},
}


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("name", ["sd", "flux", "hunyuan-video"])
def test_scalings(darkroom: Deployment, vaes: dict[str, Vae], name: str, scaling: str) -> None:
    """Given factors are applied; `do_scaling` alone means the VAE's own; else nothing is done."""
    vae, arguments = vaes[name], SCALINGS[scaling]
    applied = {key: value for key, value in arguments.items() if key != "do_scaling"}
    if "do_scaling" in arguments:
        applied = {}
    elif not applied:
        applied = vae.factors
    got = remote_decode(
        endpoint(darkroom, f"{name}/decode"),
        vae.sent,
        output_type="pt",
        return_type="pt",
        **vae.size,
        **arguments,
    )
    assert_values(got, vae.decode(vae.unscaled(applied)))


@pytest.mark.parametrize("sent", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("own", ["float32", "float16", "bfloat16"])
def test_dtypes(darkroom: Deployment, vaes: dict[str, Vae], own: str, sent: str) -> None:
    """A tensor comes in the VAE's dtype, but bfloat16 only to those who sent it; else widened."""
    dtypes = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")}
    latents = vaes["sd"].latents.to(dtypes[sent])
    name = "sd" if own == "float32" else f"sd-{own}"
    got = remote_decode(
        endpoint(darkroom, f"{name}/decode"),
        latents,
        output_type="pt",
        return_type="pt",
        scaling_factor=0.5,
    )
    vae = make_kl(4).to(dtypes[own])
    with torch.inference_mode():
        expected = vae.decode(latents.to(dtypes[own]) / 0.5, return_dict=False)[0]
    widened = own == "bfloat16" and sent != "bfloat16"
    assert got.dtype == (torch.float32 if widened else dtypes[own])
    assert_values(got, expected)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_no_batch_axis(darkroom: Deployment, vaes: dict[str, Vae], name: str) -> None:
    """Three dimensions may be an unpacked picture, as SD.Next sends it; the answer is a batch."""
    vae = vaes[name]
    got = remote_decode(
        endpoint(darkroom, f"{name}/decode"),
        vae.latents[0],
        output_type="pt",
        return_type="pt",
        height=SIDE.height,
        width=SIDE.width,
        **vae.factors,
    )
    assert_values(got, vae.decoded)


def test_batches(darkroom: Deployment, vaes: dict[str, Vae]) -> None:
    """Several pictures come as a tensor; as one picture they are refused, with advice."""
    address, vae = endpoint(darkroom, "sd/decode"), vaes["sd"]
    latents = torch.cat([vae.latents, -vae.latents])
    got = remote_decode(
        address,
        latents,
        output_type="pt",
        return_type="pil",
        partial_postprocess=True,
        do_scaling=False,
    )
    assert_pixels(got, to_pixels(vae.decode(latents)))
    with pytest.raises(RuntimeError, match="output_type=pt") as refused:
        remote_decode(address, latents)
    assert refused.value.args[0]["status"] == 422


def test_one_video_at_a_time(darkroom: Deployment, vaes: dict[str, Vae]) -> None:
    """Several videos come as floating point only, and a video is not one picture."""
    address, vae = endpoint(darkroom, "hunyuan-video/decode"), vaes["hunyuan-video"]
    latents = torch.cat([vae.latents, -vae.latents])
    got = remote_decode(address, latents, output_type="pt", return_type="pt", do_scaling=False)
    assert_values(got, vae.decode(latents))
    for arguments in (
        {"output_type": "mp4", "return_type": "mp4"},
        {"output_type": "pil", "processor": VideoProcessor()},
        {"output_type": "pt", "partial_postprocess": True},
    ):
        with pytest.raises(RuntimeError, match="2 videos"):
            remote_decode(address, latents, **arguments)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="give a processor"):
        remote_decode(address, vae.latents)


def test_mp4_of_pictures(darkroom: Deployment, vaes: dict[str, Vae]) -> None:
    """The client's user reads why there is no video of a picture."""
    with pytest.raises(RuntimeError, match="sd gives pictures"):
        remote_decode(
            endpoint(darkroom, "sd/decode"),
            vaes["sd"].latents,
            output_type="mp4",
            return_type="mp4",
        )


@pytest.mark.parametrize("name", PIPELINES)
def test_latents_as_pipelines_leave_them(darkroom: Deployment, name: str) -> None:
    """`do_scaling` undoes what a video pipeline does; frames are told in the endpoint's query."""
    case, size = CASES[name], PIPELINES[name]
    vae = case.make_vae()
    needs = case.needs(size)
    frames = {key: needs.pop(key) for key in ("num_frames",) if key in needs}
    got = remote_decode(
        endpoint(darkroom, f"{name}/decode", **frames),
        case.run(vae, size, "latent").contiguous(),
        output_type="pil",
        processor=VideoProcessor(),
        return_type="pt",
        height=needs.get("height"),
        width=needs.get("width"),
    )
    assert_values(got, case.run(vae, size, "pt")[0])


def a_picture() -> Image.Image:
    """Draw something with colours that change slowly."""
    y, x = np.mgrid[: SIDE.height, : SIDE.width]
    waves = [np.sin(x / 7), np.cos(y / 5), np.sin((x + y) / 11)]
    return Image.fromarray((np.stack(waves, -1) * 100 + 128).astype("uint8"))


def from_picture(picture: Image.Image) -> torch.Tensor:
    """Bring a picture into [1, 3, H, W] in [-1, 1]."""
    return (to_bytes(picture) / 255 * 2 - 1).contiguous()


def to_bytes(picture: Image.Image) -> torch.Tensor:
    """Bring a picture into [1, 3, H, W] in uint8."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].contiguous()


ENCODINGS: dict[str, dict[str, float]] = {
    "as it is": {},
    "factor": {"scaling_factor": 0.18215},
    "both": {"scaling_factor": 0.3611, "shift_factor": 0.1159},
    "shift alone": {"shift_factor": 0.1159},
}


@pytest.mark.parametrize("factors", ENCODINGS, ids=str)
@pytest.mark.parametrize("name", ["sd", "flux"])
@pytest.mark.parametrize("form", ["picture", "float32", "uint8"])
def test_encode_pictures(
    darkroom: Deployment, vaes: dict[str, Vae], name: str, form: str, factors: str
) -> None:
    """Pictures and tensors become the mode of what the VAE gives, scaled as it was asked for."""
    picture, given = a_picture(), ENCODINGS[factors]
    pixels = from_picture(picture)
    sent: Any = {
        "picture": picture,
        "float32": pixels,
        "uint8": to_bytes(picture),
    }[form]
    got = remote_encode(endpoint(darkroom, f"{name}/encode"), sent, **given)
    with torch.inference_mode():
        latents = vaes[name].module.encode(pixels).latent_dist.mode()
    latents = (latents - given.get("shift_factor", 0.0)) * given.get("scaling_factor", 1.0)
    assert got.dtype == torch.float32
    assert_values(got, latents)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_encode_dtypes(darkroom: Deployment, vaes: dict[str, Vae], dtype: torch.dtype) -> None:
    """Pixels in half precision are taken as they are, and their dtype comes back where it may."""
    pixels = from_picture(a_picture()).to(dtype)
    name = f"sd-{str(dtype).removeprefix('torch.')}"
    for vae, expected in (("sd", torch.float32), (name, dtype)):
        got = remote_encode(endpoint(darkroom, f"{vae}/encode"), pixels)
        module = make_kl(4).to(expected)
        with torch.inference_mode():
            latents = module.encode(pixels.to(expected)).latent_dist.mode()
        assert got.dtype == expected
        assert_values(got, latents)


def test_encode_a_video(darkroom: Deployment, vaes: dict[str, Vae]) -> None:
    """A video VAE takes frames, and a picture as a video of one frame."""
    address, module = endpoint(darkroom, "hunyuan-video/encode"), vaes["hunyuan-video"].module
    pixels = from_picture(a_picture())
    frames = torch.stack([pixels * scale for scale in (1, 0.8, 0.6, 0.4, 0.2)], dim=2)
    for sent, seen in ((frames, frames), (a_picture(), pixels[:, :, None])):
        with torch.inference_mode():
            latents = module.encode(seen).latent_dist.mode()
        assert_values(remote_encode(address, sent), latents)


def test_there_and_back(darkroom: Deployment, vaes: dict[str, Vae]) -> None:
    """What was encoded decodes with the same factors as if nothing had been scaled."""
    factors = vaes["flux"].factors
    latents = remote_encode(endpoint(darkroom, "flux/encode"), a_picture(), **factors)
    got = remote_decode(
        endpoint(darkroom, "flux/decode"), latents, output_type="pt", return_type="pt", **factors
    )
    with torch.inference_mode():
        module = vaes["flux"].module
        encoded = module.encode(from_picture(a_picture())).latent_dist.mode()
        expected = module.decode(encoded, return_dict=False)[0]
    assert (got - expected).abs().max() < 1e-3


@pytest.mark.parametrize("action", ["decode", "encode"])
def test_keys(darkroom: Deployment, vaes: dict[str, Vae], action: str) -> None:
    """The key is the address's password or its `api_key`; without one the client says so."""
    host = darkroom.api_url.removeprefix("http://")
    quoted = KEY.replace(":", "%3A").replace("@", "%40").replace("/", "%2F")

    def call(address: str) -> Any:
        if action == "decode":
            return remote_decode(address, vaes["sd"].latents, do_scaling=False)
        return remote_encode(address, a_picture())

    assert call(f"http://anybody:{quoted}@{host}/hf/sd/{action}") is not None
    assert call(endpoint(darkroom, f"sd/{action}")) is not None
    for address in (f"http://{host}/hf/sd/{action}", f"http://anybody:no@{host}/hf/sd/{action}"):
        with pytest.raises(RuntimeError) as refused:
            call(address)
        problem = refused.value.args[0]
        assert (problem["status"], problem["error"]) == (401, problem["detail"])
    assert KEY not in darkroom.logs()


def test_redirects(servers: Servers, vaes: dict[str, Vae], tmp_path: Path) -> None:
    """The client follows redirects, with its key, until a worker has done its job."""
    with servers.deploy(tmp_path, api_keys=f"anna:{KEY}") as deployment:
        host = deployment.start_api().removeprefix("http://")
        quoted = KEY.replace(":", "%3A").replace("@", "%40").replace("/", "%2F")
        addresses = [
            endpoint(deployment, "demo/decode", redirect="true", wait=1),
            f"http://anybody:{quoted}@{host}/hf/demo/decode?redirect=true&wait=1",
        ]
        headers = {"Authorization": f"Bearer {KEY}"}
        with deployment.client(headers=headers) as client, ThreadPoolExecutor() as pool:
            calls = [
                pool.submit(
                    remote_decode,
                    address,
                    vaes["sd"].latents,
                    output_type="pt",
                    return_type="pt",
                    do_scaling=False,
                )
                for address in addresses
            ]
            jobs = eventually(
                lambda: len(found := client.get("/v1/jobs").json()["results"]) == 2 and found
            )
            deployment.start_worker()
            got = [call.result(timeout=60) for call in calls]
            for job in jobs:
                document = client.get(f"/v1/jobs/{job['id']}").json()
                assert document["timings"]["queued"] > 1000, "else nothing was redirected"
        assert [tensor.shape for tensor in got] == [(1, 3, SIDE.height, SIDE.width)] * 2
