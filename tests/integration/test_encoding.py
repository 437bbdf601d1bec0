"""Pictures to latents over HTTP: `task=encode`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from tests.conftest import Deployment, Servers
from tests.pipelines import CASES
from tests.vaes import write_catalog

PHOTOGRAPHS = sorted((Path(__file__).parents[2] / "demo" / "photographs").glob("*.jpg"))


def encode(darkroom: Deployment, body: bytes, kind: str, **options: Any) -> dict[str, Any]:
    """Have a body encoded, and return the finished job."""
    with darkroom.client() as client:
        answer = client.post(
            "/v1/jobs",
            params={"vae": "sd", "task": "encode", **options},
            content=body,
            headers={"Content-Type": kind, "Prefer": "wait=60"},
        )
        assert answer.status_code == 200, answer.text
        return answer.json()


def latents_of(job: dict[str, Any]) -> torch.Tensor:
    """Fetch the latents of a finished job."""
    assert job["status"] == "succeeded", job
    (output,) = job["outputs"]
    assert output["content_type"] == "application/x-safetensors"
    return safetensors.torch.load(httpx.get(output["url"]).content)["latents"]


def file_of(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """Write a picture into a file of some format."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def families(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An API and a worker that know a VAE of every family."""
    folder = tmp_path_factory.mktemp("families")
    entries = {}
    for name, case in CASES.items():
        case.make_vae().save_pretrained(folder / name)
        entries[name] = {"family": case.family, "source": str(folder / name)}
    with servers.deploy(folder, catalog=str(write_catalog(folder, entries))) as deployment:
        deployment.start_api()
        deployment.start_worker()
        yield deployment


@pytest.fixture(scope="module")
def vae() -> torch.nn.Module:
    """The VAE that encodes by default, for comparison."""
    return CASES["sd"].make_vae()


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """One of the demo's photographs, small."""
    return Image.open(PHOTOGRAPHS[0]).convert("RGB").resize((120, 88))


def encode_locally(vae: torch.nn.Module, picture: Image.Image) -> torch.Tensor:
    """Encode as an img2img pipeline does, with the distribution's mode."""
    pixels = VaeImageProcessor(vae_scale_factor=8).preprocess(picture)
    with torch.inference_mode():
        return vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream"])
def test_a_picture_becomes_scaled_latents(
    families: Deployment, vae: torch.nn.Module, photograph: Image.Image, kind: str
) -> None:
    """The latents are those of `vae.encode`, its mode, in the scale that pipelines work with."""
    job = encode(families, file_of(photograph, "PNG"), kind)
    assert (job["task"], job["format"]) == ("encode", "safetensors")
    assert job["latents"]["shape"] == [1, 3, 88, 120]
    assert torch.allclose(latents_of(job), encode_locally(vae, photograph), atol=1e-5)


def test_encoding_is_deterministic(families: Deployment, photograph: Image.Image) -> None:
    """The same picture gives the same latents, bit by bit."""
    content = file_of(photograph, "PNG")
    first, second = (latents_of(encode(families, content, "image/png")) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "JPEG", {"quality": 95}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGBA", "PNG", {}),
        ("L", "PNG", {}),
        ("P", "PNG", {}),
        ("CMYK", "JPEG", {}),
    ],
)
def test_files_of_every_kind_are_read(
    families: Deployment,
    vae: torch.nn.Module,
    photograph: Image.Image,
    mode: str,
    kind: str,
    options: dict[str, Any],
) -> None:
    """JPEG, WebP, transparency, grey, palettes and CMYK become RGB as diffusers reads them."""
    content = file_of(photograph.convert(mode), kind, **options)
    job = encode(families, content, f"image/{kind.lower()}")
    local = Image.open(io.BytesIO(content)).convert("RGB")
    assert torch.allclose(latents_of(job), encode_locally(vae, local), atol=1e-5)


def test_a_side_that_is_no_multiple_is_resized_as_diffusers_does(
    families: Deployment, vae: torch.nn.Module, photograph: Image.Image
) -> None:
    """A picture of any size is taken; the latents are those of diffusers' image processor."""
    odd = photograph.resize((101, 67))
    job = encode(families, file_of(odd, "PNG"), "image/png")
    latents = latents_of(job)
    assert latents.shape == (1, 4, 8, 12)
    assert torch.allclose(latents, encode_locally(vae, odd), atol=1e-5)
    assert "resized" in " ".join(job["provenance"]["warnings"])


def test_tensors_of_pixels_are_taken(
    families: Deployment, vae: torch.nn.Module, photograph: Image.Image
) -> None:
    """uint8 with the channels last or first, and floating point in [-1, 1], give the same."""
    pixels = np.asarray(photograph)
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    bodies = {
        "last": torch.from_numpy(pixels.copy()),
        "first": planes.contiguous(),
        "float": planes.float() / 255 * 2 - 1,
    }
    expected = encode_locally(vae, photograph)
    for name, tensor in bodies.items():
        body = safetensors.torch.save({"pixels": tensor.contiguous()})
        job = encode(families, body, "application/x-safetensors")
        assert torch.allclose(latents_of(job), expected, atol=1e-5), name


def test_scaling_can_be_left_out_or_given(
    families: Deployment, vae: torch.nn.Module, photograph: Image.Image
) -> None:
    """`scaling=none` gives the VAE's own latents; factors are applied as (x - shift) * factor."""
    content = file_of(photograph, "PNG")
    own = encode_locally(vae, photograph) / vae.config.scaling_factor
    none = latents_of(encode(families, content, "image/png", scaling="none"))
    given = encode(families, content, "image/png", scaling_factor=0.5, shift_factor=0.25)
    assert torch.allclose(none, own, atol=1e-4)
    assert torch.allclose(latents_of(given), (own - 0.25) * 0.5, atol=1e-4)


@pytest.mark.parametrize("path", PHOTOGRAPHS[:6], ids=lambda path: path.stem)
def test_photographs_survive_the_round_trip(installation: Deployment, path: Path) -> None:
    """A photograph that is encoded and decoded is itself again, as far as the VAE can tell."""
    photograph = Image.open(path).convert("RGB").resize((256, 256))
    job = encode(installation, file_of(photograph, "PNG"), "image/png", vae="demo")
    body = safetensors.torch.save({"latents": latents_of(job)})
    with installation.client() as client:
        answer = client.post(
            "/v1/jobs?vae=demo",
            content=body,
            headers={"Content-Type": "application/x-safetensors", "Prefer": "wait=60"},
        ).json()
    picture = Image.open(io.BytesIO(httpx.get(answer["outputs"][0]["url"]).content))
    error = np.mean((np.asarray(picture, float) - np.asarray(photograph, float)) ** 2)
    assert 10 * np.log10(255**2 / error) > 20


def test_a_damaged_picture_fails_its_job(families: Deployment, photograph: Image.Image) -> None:
    """A file whose header is whole and whose rest is not fails with the reason, at once."""
    content = file_of(photograph, "PNG")
    job = encode(families, content[: len(content) // 2], "image/png")
    assert job["status"] == "failed"
    assert job["attempts"] == 1
    assert job["error"]["type"].endswith("invalid-picture")


@pytest.mark.parametrize("name", list(CASES))
def test_every_family_encodes_what_it_can_decode(families: Deployment, name: str) -> None:
    """Encoded latents, sent back as they came, give a picture of the same size and frames."""
    case = CASES[name]
    size = next(size for size in case.sizes if size.batch == 1 and size.height % 32 == 0)
    vae = case.make_vae()
    frames = case.run(vae, size, "pt") * 2 - 1
    pixels = frames.transpose(1, 2) if frames.ndim == 5 else frames
    body = safetensors.torch.save({"pixels": pixels.contiguous()})
    latents = latents_of(encode(families, body, "application/x-safetensors", vae=name))
    with families.client() as client:
        answer = client.post(
            "/v1/jobs",
            params={"vae": name, "format": "safetensors"},
            content=safetensors.torch.save({"latents": latents.contiguous()}),
            headers={"Content-Type": "application/x-safetensors", "Prefer": "wait=60"},
        )
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["status"] == "succeeded", job
    decoded = safetensors.torch.load(httpx.get(job["outputs"][0]["url"]).content)["decoded"]
    assert decoded.shape == pixels.shape
