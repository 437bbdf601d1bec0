"""Families: layouts, checks and scaling."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from darkroom_infra.families import FAMILIES, LatentsError, VaeFacts, config_factors
from darkroom_wire.jobs import JobOptions, Scaling

FLUX = FAMILIES["flux"]
FACTS = VaeFacts(latent_channels=16, spatial_factor=8)


@pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (64, 96), (72, 104), (1000, 40), (16, 16)], ids=str
)
def test_unpacking_is_the_pipelines(height: int, width: int) -> None:
    """Packed latents are unpacked as FluxPipeline does, sizes rounded down as it rounds them."""
    options = JobOptions(vae="flux", height=height, width=width)
    tokens = (height // 16) * (width // 16)
    packed = torch.randn(2, tokens, 64)
    unpacked = FLUX.unpack(packed, options, FACTS)
    expected = FluxPipeline._unpack_latents(packed, height, width, 8)
    assert torch.equal(unpacked, expected)
    decoded = FLUX.plan(tuple(packed.shape), options, FACTS)
    assert (decoded.count, decoded.height, decoded.width) == (
        2,
        expected.shape[2] * 8,
        expected.shape[3] * 8,
    )


def test_four_dimensions_are_not_packed() -> None:
    """Flux latents in a grid pass as they are, without a size."""
    grid = torch.randn(1, 16, 4, 6)
    assert FLUX.unpack(grid, JobOptions(vae="flux"), FACTS) is grid
    assert FLUX.plan((1, 16, 4, 6), JobOptions(vae="flux"), FACTS).width == 48


@pytest.mark.parametrize(
    "shape", [(1, 4, 8, 8), (1, 15, 64), (1, 16, 60), (2, 2, 2, 2, 2)], ids=str
)
def test_misfits_are_refused(shape: tuple[int, ...]) -> None:
    """What does not fit is refused with the field."""
    with pytest.raises(LatentsError) as caught:
        FLUX.plan(shape, JobOptions(vae="flux", height=64, width=64), FACTS)
    assert caught.value.errors[0].field in ("latents", "height")


def test_scaling_follows_the_options() -> None:
    """The VAE's own scaling by default, none, or the caller's factors."""
    config = {"scaling_factor": 0.5, "shift_factor": 0.25}
    z = torch.ones(1)
    for options, expected in (
        ({}, 2.25),
        ({"scaling": Scaling.NONE}, 1.0),
        ({"scaling_factor": 4.0}, 0.25),
        ({"shift_factor": 1.0}, 2.0),
    ):
        factors = config_factors(config, JobOptions(vae="x", **options))
        assert factors.undo(z).item() == expected
    assert config_factors({"shift_factor": None}, JobOptions(vae="x")).undo(z).item() == 1.0


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_family_reads_a_config(family: object) -> None:
    """A family reads the facts of an autoencoder's configuration, and refuses one without."""
    facts = FAMILIES[family.name].facts  # type: ignore[attr-defined]
    config = {"latent_channels": 16, "block_out_channels": [1, 2, 3, 4]}
    assert facts(config) == VaeFacts(16, 8)
    with pytest.raises(ValueError, match=r"config\.json"):
        facts({})
