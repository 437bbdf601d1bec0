"""Pipelines whose VAE is elsewhere, and diffusers' remote calls, against real local decoding."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers.utils.remote_utils as dialect
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.video_processor import VideoProcessor
from PIL import Image
from torch import nn

import darkroom
from darkroom import Client, RemoteVAE, remote_decode, remote_encode
from tests.conftest import Deployment, Servers, eventually
from tests.pipelines import CASES, WIDTH, Case, Size
from tests.vaes import write_catalog

LIMIT = 2e-4
FAINT = "sd-faint"
"""A VAE whose distribution is as narrow as real ones are, so that sampling gives the mode."""


@pytest.fixture(scope="module")
def vaes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[nn.Module, Path]]:
    """The VAE of each case, and the folder to which it was saved."""
    root = tmp_path_factory.mktemp("vaes")
    made = {name: case.make_vae() for name, case in CASES.items()}
    made[FAINT] = faint = CASES["sd"].make_vae()
    with torch.no_grad():
        faint.quant_conv.weight[4:] = 0
        faint.quant_conv.bias[4:] = -30
    for name, vae in made.items():
        vae.save_pretrained(root / name)
    return {name: (vae, root / name) for name, vae in made.items()}


@pytest.fixture(scope="module")
def service(
    servers: Servers,
    vaes: Mapping[str, tuple[nn.Module, Path]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    """An API and a worker that know those VAEs."""
    folder = tmp_path_factory.mktemp("remote")
    families = {name: case.family for name, case in CASES.items()} | {FAINT: "sd"}
    entries = {
        name: {"family": family, "source": str(vaes[name][1]), "dtype": "float32"}
        for name, family in families.items()
    }
    with servers.deploy(folder, catalog=str(write_catalog(folder, entries))) as deployment:
        deployment.start_api()
        deployment.start_worker()
        yield deployment


@pytest.fixture(scope="module")
def client(service: Deployment) -> Iterator[Client]:
    """A client of that service."""
    with Client(service.api_url) as client:
        yield client


@pytest.fixture
def address(service: Deployment, monkeypatch: pytest.MonkeyPatch) -> str:
    """The service's address, which `DARKROOM_URL` has too."""
    monkeypatch.setenv("DARKROOM_URL", service.api_url)
    return service.api_url


def load(client: Client, name: str) -> None:
    """Have a worker load a VAE whose weights hold statistics, and wait until it has told them."""
    if CASES[name].family not in ("flux2", "ltx-video"):
        return
    channels = client.vae(name).latent_channels
    frames = (1,) if CASES[name].sizes[0].num_frames else ()
    latents = torch.zeros(1, channels, *frames, 4, 4)
    client.submit(latents, name, scaling="none", format="safetensors").wait(60)
    eventually(lambda: client.vae(name).buffers)


def uneven(case: Case) -> Size:
    """Choose a case's first size that is no square."""
    return next(size for size in case.sizes if size.height != size.width)


def latents_of(vae: nn.Module, *shape: int) -> torch.Tensor:
    """Make latents of a seed."""
    del vae
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", CASES)
def test_pipelines_run_unchanged(
    client: Client, vaes: Mapping[str, tuple[nn.Module, Path]], name: str
) -> None:
    """A pipeline with a RemoteVAE in the place of its VAE makes the same pictures."""
    case = CASES[name]
    load(client, name)
    expected = case.run(vaes[name][0], uneven(case), "pt")
    made = case.run(RemoteVAE(name, client), uneven(case), "pt")
    assert expected.std() > 0.05, "too little contrast to tell a wrong scale"
    assert made.shape == expected.shape
    assert (made - expected).abs().max() <= LIMIT


@pytest.mark.parametrize("name", CASES)
def test_encoding_equals_the_vaes(
    client: Client, vaes: Mapping[str, tuple[nn.Module, Path]], name: str
) -> None:
    """What `encode` gives has the VAE's own layout, scale and attributes."""
    case, vae = CASES[name], vaes[name][0]
    load(client, name)
    frames = case.sizes[0].num_frames
    time = (frames,) if frames else (1,) if case.family == "qwen-image" else ()
    pixels = latents_of(vae, 1, 3, *time, 64, 96).clamp(-1, 1)
    remote = RemoteVAE(name, client)
    with torch.no_grad():
        expected, made = vae.encode(pixels), remote.encode(pixels)
    for attribute in ("latents", "latent"):
        assert hasattr(made, attribute) == hasattr(expected, attribute)
    plain = getattr(expected, "latents", getattr(expected, "latent", None))
    if plain is None:
        plain = expected.latent_dist.mode()
        assert torch.equal(made.latent_dist.sample(), made.latent_dist.mode())
        made = made.latent_dist.mode()
    else:
        made = made[0]
    assert plain.std() > 0.01
    assert made.shape == plain.shape
    assert (made - plain).abs().max() <= LIMIT * max(1, plain.abs().max())


def test_cogvideox_frames_are_never_taken_for_channels(
    client: Client, vaes: Mapping[str, tuple[nn.Module, Path]]
) -> None:
    """Sixteen latent frames of sixteen channels are decoded in the right order."""
    vae = vaes["cogvideox"][0]
    latents = latents_of(vae, 1, 16, 16, 2, 4)
    with torch.no_grad():
        expected = vae.decode(latents).sample
    made = RemoteVAE("cogvideox", client).decode(latents).sample
    assert made.shape == expected.shape
    assert (made - expected).abs().max() <= LIMIT


def test_img2img(client: Client, vaes: Mapping[str, tuple[nn.Module, Path]]) -> None:
    """A picture is encoded, changed and decoded as with a local VAE, from the same seed."""
    case, made = CASES["sd"], []
    picture = latents_of(vaes[FAINT][0], 1, 3, 48, 96).clamp(-1, 1) / 2 + 0.5
    for vae in (vaes[FAINT][0], RemoteVAE(FAINT, client)):
        torch.manual_seed(1)
        absent = dict.fromkeys(
            ("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")
        )
        parts = case.parts()
        parts["unet"].register_to_config(sample_size=64)  # this pipeline wants to know it
        pipe = StableDiffusionImg2ImgPipeline(vae=vae, **parts, **absent)
        pipe.set_progress_bar_config(disable=True)
        (result,) = pipe(
            prompt_embeds=torch.randn(1, 4, WIDTH),
            image=picture,
            strength=0.5,
            guidance_scale=1.0,
            num_inference_steps=4,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            return_dict=False,
        )[:1]
        made.append(result)
    assert made[0].std() > 0.05
    assert (made[0] - made[1]).abs().max() <= LIMIT


def test_a_pipeline_made_without_a_vae(
    client: Client, vaes: Mapping[str, tuple[nn.Module, Path]]
) -> None:
    """A RemoteVAE can be given to a pipeline that was loaded with `vae=None`, and moved along."""
    case = CASES["sd"]
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    torch.manual_seed(1)
    pipe = StableDiffusionPipeline(vae=None, **case.parts(), **absent)
    pipe.vae = RemoteVAE("sd", client)
    pipe.to("cpu")
    pipe.vae.enable_tiling()
    options: dict[str, Any] = {
        "prompt_embeds": torch.ones(1, 4, WIDTH),
        "guidance_scale": 1.0,
        "num_inference_steps": 2,
        "height": 48,
        "width": 64,
        "return_dict": False,
    }
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(**options, generator=torch.manual_seed(0), output_type="latent")[0]
    made = pipe(**options, generator=torch.manual_seed(0), output_type="pt")[0]
    vae = vaes["sd"][0]
    with torch.no_grad():
        local = vae.decode(latents / vae.config.scaling_factor).sample
    assert (made - (local / 2 + 0.5).clamp(0, 1)).abs().max() <= LIMIT


def test_dtype_and_config(client: Client, vaes: Mapping[str, tuple[nn.Module, Path]]) -> None:
    """The configuration is the VAE's own, and results come in the dtype of what was given."""
    remote, vae = RemoteVAE("sd", client), vaes["sd"][0]
    assert {name: value for name, value in remote.config.items() if not name.startswith("_")} == {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vae.config.items()
        if not name.startswith("_")
    }
    assert remote.dtype is torch.float32
    assert remote.decode(torch.zeros(1, 4, 4, 4, dtype=torch.bfloat16)).sample.dtype is (
        torch.bfloat16
    )


def test_statistics_are_told_once_loaded(
    servers: Servers, vaes: Mapping[str, tuple[nn.Module, Path]], tmp_path: Path
) -> None:
    """While no worker has loaded the VAE, that is told at once; afterwards the values are known.

    An API that cannot read the VAE's folder knows the configuration from workers too.
    """
    names = ("flux2", "ltx-video")
    links = {name: tmp_path / name for name in names}
    for name, link in links.items():
        link.symlink_to(vaes[name][1])
    entries = {name: {"family": name, "source": str(link)} for name, link in links.items()}
    with servers.deploy(tmp_path, catalog=str(write_catalog(tmp_path, entries))) as deployment:
        deployment.start_api()
        with Client(deployment.api_url) as client:
            for name in names:
                with pytest.raises(darkroom.VaeDetailsError, match="decode once"):
                    RemoteVAE(name, client)
            deployment.start_worker()
            for name in names:
                load(client, name)
            patches, tokens = (RemoteVAE(name, client) for name in names)
            listed = [vae for vae in client.vaes() if vae.name in names]
        links["flux2"].unlink()
        deployment.start_api()  # one that has no such folder
        with Client(deployment.api_url) as client:
            told = client.vae("flux2").config
    config = json.loads((vaes["flux2"][1] / "config.json").read_text())
    assert told == config
    assert torch.equal(patches.bn.running_mean, vaes["flux2"][0].bn.running_mean)
    assert torch.equal(patches.bn.running_var, vaes["flux2"][0].bn.running_var)
    assert torch.equal(tokens.latents_mean, vaes["ltx-video"][0].latents_mean)
    assert torch.equal(tokens.latents_std, vaes["ltx-video"][0].latents_std)
    assert [(vae.config, vae.buffers) for vae in listed] == [(None, None)] * 2


FORMS: dict[str, dict[str, Any]] = {
    "png": {"image_format": "png"},
    "tensor": {"output_type": "pt", "return_type": "pt"},
    "pixels": {"output_type": "pt", "return_type": "pt", "partial_postprocess": True},
    "pictures": {"output_type": "pt", "return_type": "pil", "partial_postprocess": True},
    "processed": {"output_type": "pt", "return_type": "pil", "processor": VaeImageProcessor()},
    "unit": {"output_type": "pil", "return_type": "pt", "processor": VaeImageProcessor()},
    "uncompressed": {"output_type": "pil", "processor": VaeImageProcessor()},
}
VIDEO_FORMS = {
    **{name: form for name, form in FORMS.items() if name != "png"},
    "processed": {"output_type": "pt", "return_type": "pil", "processor": VideoProcessor()},
    "mp4": {"output_type": "mp4", "return_type": "mp4"},
}
GIVEN: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "sd": ((1, 4, 6, 12), {}),
    "flux": ((1, 12, 64), {"height": 48, "width": 64}),
    "wan-2.1": ((1, 16, 2, 4, 6), {}),
}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("sd", form) for form in FORMS),
        *(("flux", form) for form in ("png", "tensor")),
        *(("wan-2.1", form) for form in VIDEO_FORMS),
    ],
)
def test_remote_decode_gives_what_diffusers_gives(address: str, name: str, form: str) -> None:
    """Called with the same arguments, both functions return the same, down to the last pixel."""
    shape, sizes = GIVEN[name]
    arguments = {**(VIDEO_FORMS if name == "wan-2.1" else FORMS)[form], **sizes}
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    endpoint = f"{address}/hf/{name}/decode"
    expected = dialect.remote_decode(endpoint, latents, **arguments)
    made = remote_decode(endpoint, latents, **arguments)
    assert_same(made, expected)
    assert_same(remote_decode(name, latents, **arguments), expected)


def assert_same(made: Any, expected: Any) -> None:
    """Compare pictures, lists of them, tensors and bytes."""
    if isinstance(expected, Image.Image):
        assert isinstance(made, Image.Image)
        assert (made.mode, made.size, made.format) == (
            expected.mode,
            expected.size,
            expected.format,
        )
        assert np.array_equal(np.asarray(made), np.asarray(expected))
        return
    assert type(made) is type(expected)
    if isinstance(expected, list):
        for one, other in zip(made, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, torch.Tensor):
        assert made.dtype is expected.dtype
        assert made.shape == expected.shape
        assert torch.allclose(made.float(), expected.float(), atol=1e-5)
    else:
        assert made == expected


@pytest.mark.parametrize(
    ("arguments", "undo"),
    [
        ({}, lambda z, config: z / config.scaling_factor),
        ({"do_scaling": False}, lambda z, _: z),
        ({"do_scaling": False, "scaling_factor": 3.0}, lambda z, _: z),
        ({"scaling_factor": 0.5, "shift_factor": 0.25}, lambda z, _: z / 0.5 + 0.25),
    ],
)
def test_remote_decode_scales_as_it_is_told(
    address: str,
    vaes: Mapping[str, tuple[nn.Module, Path]],
    arguments: dict[str, Any],
    undo: Any,
) -> None:
    """The VAE's factor, the caller's, or none: as documented by diffusers, in numpy too."""
    vae = vaes["sd"][0]
    latents = latents_of(vae, 2, 4, 6, 4)
    with torch.no_grad():
        expected = vae.decode(undo(latents, vae.config)).sample
    made = remote_decode("sd", latents.numpy(), output_type="pt", return_type="pt", **arguments)
    assert isinstance(made, np.ndarray)
    assert np.abs(made - expected.numpy()).max() <= LIMIT


def test_packed_latents_decode_as_unpacked_ones(
    address: str, vaes: Mapping[str, tuple[nn.Module, Path]]
) -> None:
    """Packed latents with their size become what the grid becomes locally."""
    vae = vaes["flux"][0]
    grid = latents_of(vae, 1, 16, 6, 8)
    packed = FluxPipeline._pack_latents(grid, 1, 16, 6, 8)
    with torch.no_grad():
        expected = vae.decode(grid / vae.config.scaling_factor + vae.config.shift_factor).sample
    options: dict[str, Any] = {"output_type": "pt", "return_type": "pt", "height": 48, "width": 64}
    made = remote_decode(f"{address}/hf/flux/decode", packed, **options)
    assert (made - expected).abs().max() <= LIMIT


@pytest.mark.parametrize("factors", [(), (0.5, 0.25)], ids=str)
def test_remote_encode(
    address: str, vaes: Mapping[str, tuple[nn.Module, Path]], factors: tuple[float, ...]
) -> None:
    """A picture and its tensor become the VAE's mode, scaled by the factors that are given."""
    vae = vaes["sd"][0]
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8), "RGB"
    )
    pixels = VaeImageProcessor().preprocess(image)
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mode()
    if factors:
        expected = (expected - factors[1]) * factors[0]
    for given in (image, pixels):
        made = remote_encode("sd", given, *factors)
        assert (made - expected).abs().max() <= LIMIT
    # The function of diffusers reads a copy that is gone already, unless the tensor is contiguous.
    contiguous = pixels.contiguous()
    assert_same(made, dialect.remote_encode(f"{address}/hf/sd/encode", contiguous, *factors))
    as_array = remote_encode(f"{address}/hf/sd/encode", pixels.numpy(), *factors)
    assert isinstance(as_array, np.ndarray)
    assert np.abs(as_array - expected.numpy()).max() <= LIMIT


def test_pictures_to_latents_and_back(client: Client, tmp_path: Path) -> None:
    """A picture of each kind becomes the same latents, and those become pictures of each kind."""
    image = Image.fromarray(
        np.random.default_rng(1).integers(0, 256, (32, 48, 3), dtype=np.uint8), "RGB"
    )
    path = tmp_path / "picture.png"
    image.save(path)
    kinds = (image, path, str(path), path.read_bytes(), np.asarray(image)[None])
    latents = [client.submit(kind, "sd", task="encode").result(60, as_="torch") for kind in kinds]
    assert latents[0].shape == (1, 4, 4, 6)
    assert all(torch.allclose(one, latents[0], atol=1e-6) for one in latents)
    job = client.submit(latents[0], "sd", format="png")
    pixels = job.result(60, as_="numpy")
    assert pixels.shape == (1, 32, 48, 3)
    assert np.array_equal(np.asarray(job.result(as_="pil")), pixels[0])
    assert np.array_equal(job.result(as_="torch").numpy(), pixels)
    assert job.result(as_="bytes").startswith(b"\x89PNG")


def test_videos_as_everything(client: Client) -> None:
    """A video comes as its frames, as their pixels or as bytes, from each of its formats."""
    latents = torch.randn(2, 16, 2, 4, 6, generator=torch.Generator().manual_seed(5))
    jobs = {
        kind: client.submit(latents, "wan-2.1", format=kind)
        for kind in ("png", "webp", "mp4", "safetensors")
    }
    archives = jobs["png"].result(60, as_="pil")
    assert [len(frames) for frames in archives] == [5, 5]
    pixels = jobs["png"].result(as_="numpy")
    assert pixels.shape == (2, 5, 32, 48, 3)
    assert np.array_equal(np.asarray(archives[1][3]), pixels[1, 3])
    animations = jobs["webp"].result(60)
    assert [len(frames) for frames in animations] == [5, 5]
    lossy = np.abs(np.asarray(animations[1][3], np.int16) - pixels[1, 3].astype(np.int16))
    others = np.abs(np.asarray(animations[0][3], np.int16) - pixels[1, 3].astype(np.int16))
    assert lossy.mean() < others.mean() / 2
    assert [content[4:8] for content in jobs["mp4"].result(60)] == [b"ftyp"] * 2
    decoded = jobs["safetensors"].result(60, as_="numpy")
    unit = (decoded.transpose(0, 2, 3, 4, 1) / 2 + 0.5).clip(0, 1)
    assert np.abs(unit * 255 - pixels).max() <= 0.51
