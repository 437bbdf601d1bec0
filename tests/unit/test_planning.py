"""Memory is planned: what a decode takes is predicted, and the fastest way that fits is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from darkroom_infra.catalog import VaeEntry
from darkroom_infra.families import Decoded
from darkroom_infra.memory import MemoryNeed
from darkroom_wire.jobs import JobOptions
from darkroom_worker import decoding, planning
from darkroom_worker.banded import Mode
from darkroom_worker.footprint import Footprint, WholeDecode
from darkroom_worker.loading import LoadedVae, load, locate
from darkroom_worker.planning import DoesNotFitError, Plan, least_need, plan, predicted_bytes
from tests.pipelines import CASES
from tests.vaes import make_kl, make_tiny

CPU = torch.device("cpu")
KINDS = ("sd", "sd-tiny", "sana", "qwen-image", "wan-2.1", "ltx-video", "cogvideox", "mochi")


def saved_and_loaded(vae: Any, folder: Path, family: str = "sd") -> LoadedVae:
    """Load a VAE as a worker does."""
    vae.save_pretrained(folder)
    entry = VaeEntry(name="vae", family=family, source=str(folder))
    return load(entry, locate(entry), device=CPU, dtype="float32")


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> LoadedVae:
    """A VAE that decodes in bands too."""
    return saved_and_loaded(make_kl(), tmp_path_factory.mktemp("kl"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedVae:
    """A VAE as one that decodes in one piece only."""
    return replace(saved_and_loaded(make_tiny(), tmp_path_factory.mktemp("tiny")), exact=None)


@pytest.mark.parametrize("name", KINDS)
def test_what_a_decode_takes_is_found_without_computing(name: str) -> None:
    """Tensors without memory are counted as real ones are, for every kind of VAE.

    What oneDNN needs inside of a convolution is estimated; docs/performance.md has measurements.
    """
    case = CASES[name]
    vae: Any = case.make_vae().eval()
    channels = vae.config.get("z_dim") or vae.config["latent_channels"]
    shape = (1, channels, *((3,) if case.family in VIDEOS else (1,) * (name == "qwen-image")), 9, 8)
    arguments = (torch.zeros(1),) if vae.config.get("timestep_conditioning") else ()
    with torch.inference_mode():
        with Footprint("cuda") as real:
            expected = vae.decode(torch.randn(shape), *arguments).sample
        predicted = WholeDecode(vae, lambda _: tuple(given.to("meta") for given in arguments))
        found = predicted.predict(shape)
    assert found is not None
    assert (found.shape, found.result_bytes) == (tuple(expected.shape), expected.nbytes)
    # On a CPU what oneDNN does is added.
    assert real.peak <= 1.01 * found.peak_bytes
    vae.to("meta")
    with torch.inference_mode(), Footprint("cuda") as hollow:
        vae.decode(torch.empty(shape, device="meta"), *arguments)
    assert hollow.peak == pytest.approx(real.peak, rel=0.02)


def test_weights_are_not_counted() -> None:
    """The first prediction for a VAE is as every later one: its weights are there already."""
    first, second = (WholeDecode(make_kl(), lambda _: ()) for _ in range(2))
    second.predict((1, 4, 8, 8))
    assert first.predict((1, 4, 16, 16)) == second.predict((1, 4, 16, 16))


VIDEOS = ("wan", "ltx-video", "cogvideox", "mochi", "hunyuan-video")


def test_the_fastest_way_that_fits_is_taken(kl: LoadedVae) -> None:
    """A budget of exactly what a way takes allows it, one byte less the next, at last none."""
    shape = (1, 4, 64, 64)
    sizes = [predicted_bytes(kl, mode, shape, 1) or 0 for mode in Mode]
    assert plan(kl, shape, sizes[0]).mode is Mode.FAST
    assert plan(kl, shape, sizes[0] - 1).mode is Mode.BALANCED
    assert plan(kl, shape, sizes[1] - 1).mode is Mode.SMALL
    with pytest.raises(DoesNotFitError, match=r"MB are needed at least, and there are"):
        plan(kl, shape, sizes[2] - 1)


def test_small_pictures_are_decoded_in_one_piece(kl: LoadedVae) -> None:
    """Bands take over where they are faster, or where one piece does not fit."""
    shape = (1, 4, 16, 16)
    whole = predicted_bytes(kl, None, shape, 1)
    assert whole is not None
    assert plan(kl, shape, whole) == Plan(None, 1)
    assert plan(kl, (1, 4, 128, 128), 1 << 40).mode is Mode.FAST
    assert plan(kl, (1, 4, 128, 128), 1 << 40, scarce=True).mode is Mode.SMALL


def test_a_batch_is_as_large_as_fits(tiny: LoadedVae) -> None:
    """A batch that does not fit is decoded in parts, whose results wait for one another."""
    shape = (6, 4, 16, 16)
    sizes = {count: predicted_bytes(tiny, None, shape, count) or 0 for count in (6, 3, 2, 1)}
    assert sizes[6] > sizes[3] > sizes[2] > sizes[1]
    for count, size in sizes.items():
        assert plan(tiny, shape, size) == Plan(None, count)
    assert plan(tiny, shape, 1 << 40, scarce=True) == Plan(None, 1)
    with pytest.raises(DoesNotFitError):
        plan(tiny, shape, sizes[1] - 1)


def test_parts_of_a_batch_give_the_same_pictures(tiny: LoadedVae) -> None:
    """What is decoded in parts equals each picture decoded alone, and says how it was done."""
    shape = (5, 4, 16, 16)
    latents = torch.randn(shape)
    told: list[tuple[int, int | None]] = []
    budget = predicted_bytes(tiny, None, shape, 1) or 0
    means = decoding.Means(budget, on_plan=lambda *parts: told.append(parts))
    with torch.inference_mode():
        together, way = decoding.decode(tiny, latents, JobOptions(vae="vae"), means)
        alone = [decoding.decode(tiny, one[None], JobOptions(vae="vae"))[0] for one in latents]
    assert torch.equal(together, torch.cat(alone))
    assert way == {"method": "whole", "batch_size": 1}
    assert told == [(5, None)]


def test_a_need_is_never_more_than_what_is_planned(kl: LoadedVae, tiny: LoadedVae) -> None:
    """What the API refuses for its need cannot be decoded by a worker either."""
    for vae in (kl, tiny):
        need = least_need(vae)
        assert need is not None
        for count, height, width in ((1, 64, 64), (1, 96, 80), (3, 128, 64), (1, 256, 256)):
            shape = (count, 4, height, width)
            asked = need.bytes_for(Decoded(count, 8 * height, 8 * width))
            plan(vae, shape, int(1.7 * asked) + 80_000_000)
            with pytest.raises(DoesNotFitError):
                plan(vae, shape, asked)


def test_a_need_that_bends_is_drawn_below() -> None:
    """Where memory grows with the square of the pixels, the line stays below it."""
    square = [planning._Point(side, 1, side**2, 1) for side in (100, 400)]
    need = planning._line(square)
    assert need is not None
    assert need.bytes_for(Decoded(1, 20, 20)) <= 400**2
    assert 0.7 * 100**2 < need.bytes_for(Decoded(1, 10, 10)) <= 100**2


def test_a_videos_need_grows_with_its_frames(tmp_path: Path) -> None:
    """Pixels, frames and copies of a result are told apart."""
    vae = saved_and_loaded(CASES["ltx-video"].make_vae(), tmp_path, "ltx-video")
    need = least_need(vae)
    assert need is not None
    assert need.per_frame_pixel > 0
    assert need.per_result == 12  # three values in float32
    one = MemoryNeed(10, 1, 12)
    assert one.bytes_for(Decoded(2, 4, 5, 3)) == 20 * (10 + 3) + 3 * 20 * 12
