"""Pictures equal what diffusers makes locally: the limits stand in docs/fidelity.md."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from PIL import Image

from darkroom_infra.catalog import VaeEntry
from darkroom_wire.jobs import JobOptions
from darkroom_worker.batching import Batching
from darkroom_worker.cache import VaeCache
from darkroom_worker.engine import Engine
from darkroom_worker.loading import load, locate
from darkroom_worker.requests import DeviceRequest
from tests.conftest import Deployment, Servers
from tests.vaes import make_kl, make_tiny, write_catalog

PAGE = Path(__file__).parents[2] / "docs" / "fidelity.md"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SD = {"scaling_factor": 0.18215}
FLUX = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
SIZES = [(8, 8), (12, 20), (26, 18)]


def limits() -> dict[tuple[str, ...], float]:
    """Read the limits from the page: the last column by the others."""
    tables = re.findall(r"^\|.+\| limit \|\n\|[-|]+\n((?:\|.+\n)+)", PAGE.read_text(), re.MULTILINE)
    rows = [row.strip("| ").split("|") for table in tables for row in table.splitlines()]
    return {tuple(cell.strip() for cell in row[:-1]): float(row[-1]) for row in rows}


LIMITS = limits()
SINGLE = [row for row in LIMITS if len(row) == 4]


def vae_name(family: str, vae_class: str, dtype: str) -> str:
    """Name a VAE in the test's catalogue."""
    return f"{family}-{vae_class}-{dtype}".lower()


def scaling_of(family: str, vae_class: str) -> dict[str, float]:
    """Give the scaling that a family's VAE has in its configuration."""
    if vae_class == "AutoencoderTiny":
        return {}
    return FLUX if family == "flux" else SD


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The VAEs of this page, on disk, by family and class."""
    root = tmp_path_factory.mktemp("vaes")
    vaes = {
        ("sd", "AutoencoderKL"): make_kl(4, **SD),
        ("sd", "AutoencoderTiny"): make_tiny(4),
        ("flux", "AutoencoderKL"): make_kl(16, **FLUX),
    }
    for key, vae in vaes.items():
        vae.save_pretrained(root / "-".join(key))
    return {key: root / "-".join(key) for key in vaes}


@pytest.fixture(scope="module")
def darkroom(
    servers: Servers,
    folders: dict[tuple[str, str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    """An API and a worker that know those VAEs."""
    folder = tmp_path_factory.mktemp("fidelity")
    entries = {
        vae_name(family, vae_class, dtype): {
            "family": family,
            "source": str(path),
            "dtype": dtype,
        }
        for (family, vae_class), path in folders.items()
        for dtype in DTYPES
    }
    with servers.deploy(folder, catalog=str(write_catalog(folder, entries))) as deployment:
        deployment.start_api()
        deployment.start_worker()
        yield deployment


def develop(
    darkroom: Deployment, latents: torch.Tensor, vae: str, **options: object
) -> list[httpx.Response]:
    """Have latents decoded over HTTP, and fetch every output."""
    with darkroom.client() as client:
        answer = client.post(
            "/v1/jobs",
            params={"vae": vae, **options},  # type: ignore[dict-item]
            content=safetensors.torch.save({"latents": latents}),
            headers={"Content-Type": "application/x-safetensors", "Prefer": "wait=60"},
        )
        assert answer.status_code == 200, answer.text
        job = answer.json()
        assert job["status"] == "succeeded", job
        return [httpx.get(output["url"]) for output in job["outputs"]]


def decode_locally(folder: Path, latents: torch.Tensor, dtype: str, family: str) -> torch.Tensor:
    """Call `vae.decode` as a pipeline does."""
    vae_class = make_tiny if "Tiny" in folder.name else make_kl
    vae = type(vae_class()).from_pretrained(folder, torch_dtype=DTYPES[dtype])
    latents = latents.to(DTYPES[dtype])
    if "Tiny" not in folder.name:
        latents = latents / vae.config.scaling_factor
        if family == "flux":
            latents = latents + vae.config.shift_factor
    with torch.inference_mode():
        return vae.decode(latents, return_dict=False)[0]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("row", SINGLE, ids="-".join)
def test_tensors_equal_local_decoding(
    darkroom: Deployment,
    folders: dict[tuple[str, str], Path],
    row: tuple[str, str, str, str],
    size: tuple[int, int],
) -> None:
    """What comes back over HTTP is what `vae.decode` gives, within the page's limit."""
    family, vae_class, layout, dtype = row
    channels = 16 if family == "flux" else 4
    torch.manual_seed(size[1])
    grid = torch.randn(2, channels, *size).to(DTYPES[dtype])
    sent, options = grid, {}
    if layout == "packed":
        sent = FluxPipeline._pack_latents(grid, 2, channels, *size)
        options = {"height": size[0] * 8, "width": size[1] * 8}
    vae = vae_name(family, vae_class, dtype)
    (answer,) = develop(darkroom, sent, vae, format="safetensors", **options)
    decoded = safetensors.torch.load(answer.content)["decoded"]
    expected = decode_locally(folders[family, vae_class], grid, dtype, family)
    assert expected.float().std() > 0.05, "too little contrast to tell a wrong scale"
    assert decoded.dtype == expected.dtype
    assert (decoded.float() - expected.float()).abs().max() <= LIMITS[row]


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("vae_class", ["AutoencoderKL", "AutoencoderTiny"])
def test_png_equals_the_image_processor(
    darkroom: Deployment,
    folders: dict[tuple[str, str], Path],
    vae_class: str,
    dtype: str,
) -> None:
    """Every pixel of every PNG is the one that diffusers' image processor makes."""
    torch.manual_seed(5)
    latents = torch.randn(3, 4, 10, 14)
    answers = develop(darkroom, latents, vae_name("sd", vae_class, dtype))
    local = decode_locally(folders["sd", vae_class], latents, dtype, "sd")
    expected = VaeImageProcessor().postprocess(local, output_type="pil")
    assert len(answers) == len(expected) == 3
    for answer, picture in zip(answers, expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), picture)


def test_given_factors_replace_the_vaes_own(
    darkroom: Deployment, folders: dict[tuple[str, str], Path]
) -> None:
    """`scaling=none` leaves latents alone; factors of the caller's are applied instead."""
    torch.manual_seed(6)
    latents = torch.randn(1, 4, 8, 8)
    vae = vae_name("sd", "AutoencoderKL", "float32")
    asked: dict[str, dict[str, object]] = {
        "own": {},
        "none": {"scaling": "none"},
        "given": {"scaling_factor": 0.5, "shift_factor": 0.25},
    }
    got = {
        name: safetensors.torch.load(
            develop(darkroom, latents, vae, format="safetensors", **options)[0].content
        )["decoded"]
        for name, options in asked.items()
    }
    inputs = {"own": latents, "none": latents * 0.18215, "given": (latents / 0.5 + 0.25) * 0.18215}
    for name, scaled in inputs.items():
        expected = decode_locally(folders["sd", "AutoencoderKL"], scaled, "float32", "sd")
        assert torch.allclose(got[name], expected, atol=1e-4), name
    assert not torch.allclose(got["own"], got["none"], atol=1e-2)


@pytest.mark.parametrize("vae_class", ["AutoencoderKL", "AutoencoderTiny"])
def test_batches_stay_within_the_limit(
    folders: dict[tuple[str, str], Path], vae_class: str
) -> None:
    """Jobs that were decoded together differ from jobs decoded alone by float rounding only."""
    folder = folders["sd", vae_class]
    entry = VaeEntry(name="vae", family="sd", source=str(folder), dtype="float32")
    cpu = torch.device("cpu")
    cache = VaeCache(
        locate, lambda vae, files: load(vae, files, device=cpu, dtype="auto"), lambda: 1 << 40
    )
    engine = Engine(cache, batching=Batching(first=8))
    torch.manual_seed(7)
    options = JobOptions(vae="vae")
    # The first one keeps the engine busy while the others arrive.
    busy = DeviceRequest(entry, torch.randn(1, 4, 64, 64), options)
    some = [DeviceRequest(entry, torch.randn(1, 4, 12, 16), options) for _ in range(4)]
    for request in (busy, *some):
        engine.submit(request)
    results = [request.future.result(60) for request in some]
    assert {result.way["batch_size"] for result in results} == {4}
    for request, result in zip(some, results, strict=True):
        expected = decode_locally(folder, request.tensor, "float32", "sd")
        assert (result.tensor - expected).abs().max() <= LIMITS[vae_class, "float32"]
