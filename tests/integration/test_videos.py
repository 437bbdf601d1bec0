"""Videos over HTTP: what each format holds, and that no frame is lost, added or reordered."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any

import av
import httpx
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image, ImageSequence

from tests.conftest import Deployment, Servers
from tests.pipelines import CASES, Size
from tests.vaes import write_catalog

SIZE = Size(48, 32, batch=2, num_frames=9)


@pytest.fixture(scope="module")
def darkroom(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An API and a worker that know a small Wan VAE."""
    folder = tmp_path_factory.mktemp("videos")
    CASES["wan-2.1"].make_vae().save_pretrained(folder / "wan")
    catalog = write_catalog(folder, {"wan": {"family": "wan", "source": str(folder / "wan")}})
    with servers.deploy(folder, catalog=str(catalog)) as deployment:
        deployment.start_api()
        deployment.start_worker()
        yield deployment


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    """What the pipeline gives for two videos of nine frames."""
    case = CASES["wan-2.1"]
    return case.run(case.make_vae(), SIZE, "latent")


@pytest.fixture(scope="module")
def expected(latents: torch.Tensor) -> np.ndarray:
    """The pixels of the pipeline's own videos, [B, F, H, W, 3]."""
    case = CASES["wan-2.1"]
    frames = case.run(case.make_vae(), SIZE, "pt")
    return (frames.permute(0, 1, 3, 4, 2) * 255).round().to(torch.uint8).numpy()


def develop(
    darkroom: Deployment, latents: torch.Tensor, **options: Any
) -> tuple[dict[str, Any], list[bytes]]:
    """Have latents decoded, and fetch every output."""
    with darkroom.client() as client:
        answer = client.post(
            "/v1/jobs",
            params={"vae": "wan", **options},
            content=safetensors.torch.save({"latents": latents.contiguous()}),
            headers={"Content-Type": "application/x-safetensors", "Prefer": "wait=60"},
        )
        assert answer.status_code == 200, answer.text
        job = answer.json()
        assert job["status"] == "succeeded", job
        return job, [httpx.get(output["url"]).content for output in job["outputs"]]


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Compare pixels, in dB."""
    error = np.mean((first.astype(float) - second.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def are_in_order(frames: list[np.ndarray], pixels: np.ndarray) -> bool:
    """Whether each frame is nearest to the pixels of its own place.

    The colours of random weights change from pixel to pixel and are lost in half-size planes, so
    that the frames are like themselves only by comparison.
    """
    nearest = [
        max(range(len(pixels)), key=lambda other: psnr(frame, pixels[other])) for frame in frames
    ]
    return nearest == list(range(len(pixels)))


def test_mp4_is_the_default_with_the_models_own_rate(
    darkroom: Deployment, latents: torch.Tensor, expected: np.ndarray
) -> None:
    """Each video of the batch is an H.264 file with all its frames, at the model's frame rate."""
    job, files = develop(darkroom, latents, quality=100)
    assert job["format"] == "mp4"
    assert len(files) == 2
    for output, content, pixels in zip(job["outputs"], files, expected, strict=True):
        described = [output[name] for name in ("content_type", "num_frames", "fps")]
        assert described == ["video/mp4", 9, 16.0]
        assert (output["width"], output["height"]) == (32, 48)
        with av.open(io.BytesIO(content)) as file:
            stream = file.streams.video[0]
            assert stream.average_rate == 16
            assert stream.codec_context.name == "h264"
            assert stream.codec_context.pix_fmt == "yuv420p"
            frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
        assert len(frames) == 9
        assert are_in_order(frames, pixels)
        assert content.index(b"moov") < content.index(b"mdat"), "players start before the end"


def test_fps_is_the_callers(darkroom: Deployment, latents: torch.Tensor) -> None:
    """A frame rate that was asked for is the file's."""
    job, (content, _) = develop(darkroom, latents, fps=23.976)
    assert job["outputs"][0]["fps"] == pytest.approx(23.976)
    with av.open(io.BytesIO(content)) as file:
        assert float(file.streams.video[0].average_rate) == pytest.approx(23.976, abs=1e-3)


def test_png_gives_every_frame_bit_by_bit(
    darkroom: Deployment, latents: torch.Tensor, expected: np.ndarray
) -> None:
    """Frames as an archive of PNGs are the pipeline's own, in their order."""
    job, files = develop(darkroom, latents, format="png")
    assert [output["content_type"] for output in job["outputs"]] == ["application/zip"] * 2
    for content, pixels in zip(files, expected, strict=True):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            frames = [np.asarray(Image.open(archive.open(name))) for name in names]
        assert names == sorted(names)
        assert np.array_equal(np.stack(frames), pixels)


def test_webp_is_animated(
    darkroom: Deployment, latents: torch.Tensor, expected: np.ndarray
) -> None:
    """An animated WebP has every frame, and plays as long as the video."""
    job, (content, _) = develop(darkroom, latents, format="webp", fps=10)
    assert job["outputs"][0]["num_frames"] == 9
    with Image.open(io.BytesIO(content)) as picture:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)]
    assert len(frames) == 9
    assert are_in_order(frames, expected[0])


def test_safetensors_holds_the_vaes_own_output(
    darkroom: Deployment, latents: torch.Tensor, expected: np.ndarray
) -> None:
    """The tensor is [B, 3, F, H, W] in about [-1, 1], all videos in one file."""
    _, (content,) = develop(darkroom, latents, format="safetensors")
    decoded = safetensors.torch.load(content)["decoded"]
    assert decoded.shape == (2, 3, 9, 48, 32)
    pixels = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 4, 1)
    assert np.abs(pixels.numpy() - expected).max() <= 1
