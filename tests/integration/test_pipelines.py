"""What comes back over HTTP is what each family's own pipeline makes of the same latents.

`pytest tests/integration/test_pipelines.py --write-docs` writes what was measured into
docs/fidelity.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest
import safetensors.torch
import torch
from torch import nn

from darkroom_infra.families import FAMILIES
from tests.conftest import Deployment, Servers
from tests.pipelines import CASES, Case, Size
from tests.vaes import write_catalog
from tools.generated import replace_generated

PAGE = Path(__file__).parents[2] / "docs" / "fidelity.md"
LIMIT = 1e-5
"""The largest difference of any value in [0, 1] that float rounding explains."""


@pytest.fixture(scope="module")
def vaes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[nn.Module, Path]]:
    """The VAE of each case, and the folder to which it was saved."""
    root = tmp_path_factory.mktemp("vaes")
    made = {name: (case.make_vae(), root / name) for name, case in CASES.items()}
    for vae, folder in made.values():
        vae.save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def darkroom(
    servers: Servers,
    vaes: Mapping[str, tuple[nn.Module, Path]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Deployment]:
    """An API and a worker that know those VAEs."""
    folder = tmp_path_factory.mktemp("pipelines")
    entries = {
        name: {"family": case.family, "source": str(vaes[name][1]), "dtype": "float32"}
        for name, case in CASES.items()
    }
    with servers.deploy(folder, catalog=str(write_catalog(folder, entries))) as deployment:
        deployment.start_api()
        deployment.start_worker()
        yield deployment


@pytest.fixture(scope="module")
def measured(request: pytest.FixtureRequest) -> Iterator[dict[str, list[torch.Tensor]]]:
    """The differences of each case, written into the page at the end if that was asked for."""
    differences: dict[str, list[torch.Tensor]] = {}
    yield differences
    if request.config.getoption("--write-docs"):
        replace_generated(PAGE, "pipelines", _table(differences))


def _table(differences: Mapping[str, list[torch.Tensor]]) -> str:
    lines = [
        "| family | pipeline | VAE | runs | worst | mean |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in sorted(differences.items(), key=lambda item: CASES[item[0]].family):
        case, values = CASES[name], torch.cat(found)
        lines.append(
            f"| {case.family} | {name} | {type(case.make_vae()).__name__} | {len(found)} "
            f"| {_figure(values.max())} | {_figure(values.mean())} |"
        )
    return "\n".join(lines)


def _figure(value: torch.Tensor) -> str:
    return f"{value.item():.1e}" if value else "0"


def develop(darkroom: Deployment, latents: torch.Tensor, vae: str, **options: object) -> dict:
    """Have latents decoded over HTTP, and return the finished job."""
    with darkroom.client() as client:
        answer = client.post(
            "/v1/jobs",
            params={"vae": vae, **options},
            content=safetensors.torch.save({"latents": latents.contiguous()}),
            headers={"Content-Type": "application/x-safetensors", "Prefer": "wait=60"},
        )
        assert answer.status_code == 200, answer.text
        job = answer.json()
        assert job["status"] == "succeeded", job
        return job


def to_unit(decoded: torch.Tensor) -> torch.Tensor:
    """Bring a VAE's output into the form of a pipeline's "pt": [0, 1], frames before channels."""
    frames = decoded.transpose(1, 2) if decoded.ndim == 5 else decoded
    return (frames / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize(
    ("case", "size"),
    [(case, size) for case in CASES.values() for size in case.sizes],
    ids=lambda value: value.name if isinstance(value, Case) else describe(value),
)
def test_pictures_equal_the_pipelines(
    darkroom: Deployment,
    vaes: Mapping[str, tuple[nn.Module, Path]],
    measured: dict[str, list[torch.Tensor]],
    case: Case,
    size: Size,
) -> None:
    """The latents of a pipeline, sent as they are, become the pictures that the pipeline makes."""
    vae, _ = vaes[case.name]
    latents = case.run(vae, size, "latent")
    expected = case.run(vae, size, "pt")
    job = develop(darkroom, latents, case.name, format="safetensors", **case.needs(size))
    (output,) = job["outputs"]
    decoded = safetensors.torch.load(httpx.get(output["url"]).content)["decoded"]
    assert expected.std() > 0.05, "too little contrast to tell a wrong scale"
    assert to_unit(decoded).shape == expected.shape
    assert (output["height"], output["width"]) == tuple(expected.shape[-2:])
    difference = (to_unit(decoded) - expected).abs()
    measured.setdefault(case.name, []).append(difference.flatten())
    assert difference.max() <= LIMIT


def test_temporal_tiles_are_told(
    darkroom: Deployment, vaes: Mapping[str, tuple[nn.Module, Path]]
) -> None:
    """A VAE that tiles long videos along time, as its pipeline does, says so in the provenance."""
    case = CASES["hunyuan-video"]
    vae, _ = vaes[case.name]
    methods = {
        size.num_frames: develop(
            darkroom, case.run(vae, size, "latent"), case.name, format="safetensors"
        )["provenance"]["method"]
        for size in case.sizes
    }
    assert {methods[frames] for frames in methods if frames <= 16} == {"whole"}
    assert {methods[frames] for frames in methods if frames > 16} == {"temporal-tiles"}


def test_every_family_has_a_pipeline() -> None:
    """No family goes without proof: each has a case."""
    assert {case.family for case in CASES.values()} == set(FAMILIES)


def describe(size: Size) -> str:
    """Name a size in a test's id."""
    frames = f"-f{size.num_frames}" if size.num_frames else ""
    return f"{size.height}x{size.width}-b{size.batch}{frames}"
