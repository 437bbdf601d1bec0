"""Families: how latents are checked, unpacked and scaled, against diffusers' own pipelines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

from darkroom_infra.families import (
    FAMILIES,
    Decoded,
    Factors,
    Family,
    LatentsError,
    VaeFacts,
    config_factors,
)
from darkroom_wire.jobs import Format, JobOptions, Scaling
from tests.vaes import make_kl, make_tiny

SD, FLUX = FAMILIES["sd"], FAMILIES["flux"]
SD_FACTS, FLUX_FACTS = VaeFacts(4, 8), VaeFacts(16, 8)
SD_CONFIG = {"scaling_factor": 0.18215}
FLUX_CONFIG = {"scaling_factor": 0.3611, "shift_factor": 0.1159}

FACTOR = 8
"""Pixels on each side of one latent, what the pipeline calls `vae_scale_factor`."""


def options(**given: Any) -> JobOptions:
    """Make options."""
    return JobOptions.model_validate({"vae": "any", **given})


def latents(*shape: int, seed: int = 0) -> torch.Tensor:
    """Make latents."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fields(error: pytest.ExceptionInfo[LatentsError]) -> set[str]:
    """Name the fields at fault."""
    return {fault.field for fault in error.value.errors}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("height", "width"),
    [
        *((16, 16), (64, 64), (64, 96), (64, 128), (512, 48)),
        *((72, 104), (79, 65), (1000, 24), (1000, 40), (31, 17)),
    ],
)
def test_flux_unpacks_as_the_pipeline_does(height: int, width: int, count: int) -> None:
    """Packed latents become what FluxPipeline gives its VAE, also where 16 divides no side."""
    rows, columns = height // 16, width // 16
    packed = latents(count, rows * columns, 64, seed=height * width)
    ours = FLUX.unpack(packed, options(height=height, width=width), FLUX_FACTS)
    assert torch.equal(ours, FluxPipeline._unpack_latents(packed, height, width, FACTOR))
    plan = FLUX.plan(tuple(packed.shape), options(height=height, width=width), FLUX_FACTS)
    assert plan == Decoded(count, ours.shape[2] * FACTOR, ours.shape[3] * FACTOR)


def test_flux_unpacking_undoes_packing() -> None:
    """What the pipeline packed comes back, value for value."""
    grid = latents(2, 16, 12, 20)
    packed = FluxPipeline._pack_latents(grid, 2, 16, 12, 20)
    assert torch.equal(FLUX.unpack(packed, options(height=96, width=160), FLUX_FACTS), grid)


def test_flux_takes_unpacked_latents_too() -> None:
    """Latents with four dimensions are taken as they are, with or without the picture's size."""
    grid = latents(1, 16, 8, 12)
    for asked in (options(), options(height=64, width=96)):
        assert FLUX.plan(tuple(grid.shape), asked, FLUX_FACTS) == Decoded(1, 64, 96)
        assert FLUX.unpack(grid, asked, FLUX_FACTS) is grid


@pytest.mark.parametrize(
    ("shape", "size", "field", "message"),
    [
        ((1, 16, 64), {}, "height", "need height and width"),
        ((1, 16, 64), {"height": 64, "width": 80}, "height", "20 in all, but 16 came"),
        ((1, 15, 64), {"height": 64, "width": 64}, "height", "16 in all, but 15 came"),
        ((1, 17, 64), {"height": 64, "width": 64}, "height", "16 in all, but 17 came"),
        ((1, 16, 64), {"height": 8, "width": 8}, "height", "0 in all, but 16 came"),
        ((1, 16, 16), {"height": 64, "width": 64}, "latents", "64 channels"),
        ((1, 16, 60), {"height": 64, "width": 64}, "latents", "64 channels"),
        ((1, 4, 8, 8), {}, "latents", "16 channels"),
        ((1, 16, 8, 8), {"height": 64, "width": 72}, "height", "64 x 64 pixels, not 64 x 72"),
        ((16, 64), {"height": 64, "width": 64}, "latents", "expected"),
        ((1, 16, 1, 8, 8), {"height": 64, "width": 64}, "latents", "expected"),
    ],
)
def test_flux_says_what_does_not_fit(
    shape: tuple[int, ...], size: dict[str, int], field: str, message: str
) -> None:
    """Latents that disagree with the size or the VAE are refused by the field at fault."""
    with pytest.raises(LatentsError, match=message) as caught:
        FLUX.plan(shape, options(**size), FLUX_FACTS)
    assert fields(caught) == {field}


def test_sd_plans_one_picture_for_each_in_the_batch() -> None:
    """The plan counts pictures and their pixels before anything is decoded."""
    plan = SD.plan((3, 4, 64, 96), options(), SD_FACTS)
    assert plan == Decoded(3, 512, 768)
    assert plan.pixels == 3 * 512 * 768
    assert SD.plan((1, 4, 8, 8), options(height=64, width=64), SD_FACTS) == Decoded(1, 64, 64)


@pytest.mark.parametrize(
    ("shape", "size", "field"),
    [
        ((1, 16, 8, 8), {}, "latents"),
        ((1, 3, 8, 8), {}, "latents"),
        ((4, 8, 8), {}, "latents"),
        ((1, 4, 1, 8, 8), {}, "latents"),
        ((1, 16, 64), {"height": 64, "width": 64}, "latents"),
        ((1, 4, 8, 8), {"height": 64, "width": 65}, "height"),
        ((1, 4, 8, 8), {"height": 512, "width": 512}, "height"),
    ],
)
def test_sd_says_what_does_not_fit(
    shape: tuple[int, ...], size: dict[str, int], field: str
) -> None:
    """Wrong channels, dimensions or sizes are refused by the field at fault."""
    with pytest.raises(LatentsError) as caught:
        SD.plan(shape, options(**size), SD_FACTS)
    assert fields(caught) == {field}
    assert str(list(shape)) in str(caught.value)


def test_sd_takes_latents_as_they_are() -> None:
    """There is nothing to unpack."""
    grid = latents(2, 4, 8, 8)
    assert SD.unpack(grid, options(), SD_FACTS) is grid


@pytest.mark.parametrize(
    ("vae", "expected"),
    [
        (make_kl(4), VaeFacts(4, 8)),
        (make_kl(16), VaeFacts(16, 8)),
        (make_kl(4, widths=(32, 32)), VaeFacts(4, 2)),
        (make_tiny(4), VaeFacts(4, 8)),
        (make_tiny(16), VaeFacts(16, 8)),
    ],
    ids=["kl, 4", "kl, 16", "kl, two levels", "tiny, 4", "tiny, 16"],
)
def test_facts_are_true(vae: Any, expected: VaeFacts) -> None:
    """Channels and factor read from a configuration are those that the VAE itself has."""
    assert SD.facts(vae.config) == expected
    with torch.inference_mode():
        decoded = vae.decode(latents(1, expected.latent_channels, 4, 6)).sample
    assert decoded.shape[2:] == (4 * expected.spatial_factor, 6 * expected.spatial_factor)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_family_reads_a_config(family: Family) -> None:
    """A family reads channels and factor; a configuration without them is refused, not guessed."""
    whole = {"latent_channels": 16, "block_out_channels": [1, 2, 3, 4]}
    assert family.facts(whole) == VaeFacts(16, 8)
    for config in ({}, {"latent_channels": 4}, {"block_out_channels": [1, 2]}):
        with pytest.raises(ValueError, match=r"config\.json"):
            family.facts(config)


@pytest.mark.parametrize(
    ("config", "given", "expected"),
    [
        (SD_CONFIG, {}, Factors(0.18215, 0.0)),
        (SD_CONFIG, {"scaling": Scaling.VAE}, Factors(0.18215, 0.0)),
        (SD_CONFIG, {"scaling": Scaling.NONE}, Factors()),
        (FLUX_CONFIG, {}, Factors(0.3611, 0.1159)),
        (FLUX_CONFIG, {"scaling": Scaling.NONE}, Factors()),
        (FLUX_CONFIG, {"scaling_factor": 2.0}, Factors(2.0, 0.0)),
        (FLUX_CONFIG, {"shift_factor": 3.0}, Factors(1.0, 3.0)),
        (FLUX_CONFIG, {"shift_factor": 0.0}, Factors()),
        (FLUX_CONFIG, {"scaling_factor": 2.0, "shift_factor": 3.0}, Factors(2.0, 3.0)),
        ({"scaling_factor": 0.3611, "shift_factor": None}, {}, Factors(0.3611, 0.0)),
        ({}, {}, Factors()),
    ],
)
def test_factors(config: dict[str, Any], given: dict[str, Any], expected: Factors) -> None:
    """The VAE's own factors, none, or the caller's: those that are given exclude the VAE's own."""
    assert config_factors(config, options(**given)) == expected


def test_factors_undo_the_scaling() -> None:
    """Latents are divided, then shifted, with the same operations as in the pipelines."""
    z = latents(1, 4, 8, 8)
    assert torch.equal(Factors(0.3611, 0.1159).undo(z), z / 0.3611 + 0.1159)
    assert torch.equal(Factors(0.18215).undo(z), z / 0.18215)
    assert Factors().undo(z) is z


def test_the_registry() -> None:
    """Each family is found under its own name, gives pictures as PNG by default, and no video."""
    for name, family in FAMILIES.items():
        assert family.name == name
        assert family.formats[0] is Format.PNG
        assert Format.MP4 not in family.formats
    assert (SD.packed, FLUX.packed) == (False, True)
