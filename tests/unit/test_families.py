"""Families: how latents are checked, unpacked and scaled, against diffusers' own pipelines.

Most tests run for every family, every case of `tests/pipelines.py` and every built-in VAE, so that
a new one is tested as soon as it is there.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.image_processor import PixArtImageProcessor, VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline
from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_1024_BIN
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from PIL import Image
from torch import Tensor

from darkroom_infra.catalog import Catalog, VaeEntry
from darkroom_infra.families import (
    FAMILIES,
    RGB,
    Decoded,
    Family,
    LatentsError,
    Normalization,
    VaeFacts,
    choose_normalization,
    plan,
    planes_shape,
    to_planes,
)
from darkroom_infra.families.packed import PackedFamily
from darkroom_infra.families.video import PackedVideoFamily, VideoFamily
from darkroom_wire.jobs import Format, JobOptions, Scaling
from darkroom_worker import decoding
from darkroom_worker.loading import LoadedVae, load, locate
from tests.pipelines import CASES, Case, Size

NAMES = {
    *("sd", "sd3", "flux", "flux2", "qwen-image", "sana"),
    *("hunyuan-video", "wan", "ltx-video", "cogvideox", "mochi"),
}
BUILT_IN = {
    *("sd-v1", "sdxl", "sd3", "flux", "flux2", "qwen-image", "sana"),
    *("hunyuan-video", "wan", "ltx-video", "cogvideox", "mochi"),
    *("taesd", "taesdxl", "taesd3", "taef1", "demo"),
}
LIMIT = 1e-5
"""The largest difference of any value in [0, 1] that float rounding explains."""

SHOWS = 2e-4
"""By how much a picture differs at least where a part of the rule is wrong."""

CATALOG = Catalog.load()

each_case = pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
each_vae = pytest.mark.parametrize("vae", CATALOG.values(), ids=lambda vae: vae.name)

Loader = Callable[[str], LoadedVae]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    """Load the VAE of a case as a worker does."""
    root = tmp_path_factory.mktemp("vaes")

    @functools.cache
    def load_case(name: str) -> LoadedVae:
        CASES[name].make_vae().save_pretrained(root / name)
        return load_folder(CASES[name], root / name)

    return load_case


@pytest.fixture(autouse=True, scope="module")
def small_and_quiet() -> Iterator[None]:
    """Let tiny models run in one thread, and pipelines not tell of each size that they round."""
    before = torch.get_num_threads(), diffusers.logging.get_verbosity()
    torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()
    yield
    torch.set_num_threads(before[0])
    diffusers.logging.set_verbosity(before[1])


def load_folder(case: Case, folder: Path, dtype: str = "auto") -> LoadedVae:
    """Load a VAE that lies in a folder."""
    entry = VaeEntry(name=case.name, family=case.family, source=str(folder))
    return load(entry, locate(entry), device=torch.device("cpu"), dtype=dtype)


def options(**given: Any) -> JobOptions:
    """Make options."""
    return JobOptions.model_validate({"vae": "any", **given})


def whole_size(size: Size) -> dict[str, int]:
    """Say all of a size, whether it is needed or not."""
    frames = {} if size.num_frames is None else {"num_frames": size.num_frames}
    return {"height": size.height, "width": size.width, **frames}


def to_unit(decoded: Tensor) -> Tensor:
    """Bring a VAE's output into the form of a pipeline's "pt": [0, 1], frames before channels."""
    frames = decoded.transpose(1, 2) if decoded.ndim == 5 else decoded
    return (frames / 2 + 0.5).clamp(0, 1)


def decode(vae: LoadedVae, latents: Tensor, asked: JobOptions) -> Tensor:
    """Check and decode as the engine does."""
    with torch.inference_mode():
        return decoding.decode(vae, decoding.check(vae, latents, asked), asked)[0]


def unit_shape(decoded: Decoded) -> tuple[int, ...]:
    """Give the shape of a pipeline's "pt" for what was planned."""
    frames = () if decoded.frames is None else (decoded.frames,)
    return (decoded.count, *frames, RGB, decoded.height, decoded.width)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    """Make latents."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def at_fault(error: pytest.ExceptionInfo[LatentsError]) -> set[str]:
    """Name the fields at fault."""
    return {fault.field for fault in error.value.errors}


def grid_shape(family: Family, facts: VaeFacts, length: int = 3) -> tuple[int, ...]:
    """Give a shape that the family takes: one picture or video, not packed."""
    lengths = (2 * family.patch, 3 * family.patch)
    if isinstance(family, VideoFamily):
        lengths = (length, *lengths)
    for axis in range(len(lengths) + 1):
        shape = (1, *lengths[:axis], facts.latent_channels, *lengths[axis:])
        try:
            family.plan(shape, options(), facts)
        except LatentsError:
            continue
        return shape
    pytest.fail(f"{family.name} takes no grid")


# --- The registry and the catalogue


def test_the_registry() -> None:
    """All families of the contract are there, each under its own name."""
    assert set(FAMILIES) >= NAMES
    assert all(family.name == name for name, family in FAMILIES.items())


@each_family
def test_what_a_family_gives(family: Family) -> None:
    """Pictures are PNG by default and never MP4; videos are MP4 by default and have a speed."""
    is_video = isinstance(family, VideoFamily)
    assert family.formats[0] is (Format.MP4 if is_video else Format.PNG)
    assert (Format.MP4 in family.formats) == is_video
    assert set(family.formats) >= set(Format) - {Format.MP4}
    assert (family.fps is not None) == is_video


@each_family
def test_a_family_is_in_use(family: Family) -> None:
    """A family has a built-in VAE, and a pipeline that proves its rule."""
    assert family.name in {vae.family for vae in CATALOG.values()}
    assert family.name in {case.family for case in CASES.values()}


@each_case
def test_packed_families(loaded: Loader, case: Case) -> None:
    """It is told which pipelines pack their latents: those that give tokens, three lengths."""
    latents = case.run(loaded(case.name).module, case.sizes[0], "latent")
    assert (latents.ndim == 3) == FAMILIES[case.family].packed


def test_the_built_in_vaes() -> None:
    """All VAEs of the contract are there."""
    assert set(CATALOG) >= BUILT_IN


@each_vae
def test_built_in_facts_are_a_proven_vaes(loaded: Loader, vae: VaeEntry) -> None:
    """What a built-in entry says is true for a VAE whose pictures were compared."""
    proven = {loaded(case.name).facts for case in CASES.values() if case.family == vae.family}
    if vae.source.startswith("madebyollin/"):
        # Tiny ones stand in for another VAE: they have that one's channels and factor.
        proven |= {
            other.facts
            for other in CATALOG.values()
            if other.family == vae.family and not other.source.startswith("madebyollin/")
        }
    assert vae.facts in proven


def defaults(vae: type) -> Mapping[str, Any]:
    """Give the configuration of a VAE that is made without arguments."""
    parameters = inspect.signature(vae.__init__).parameters
    return {name: parameters[name].default for name in parameters if name != "self"}


@pytest.mark.parametrize(
    "case",
    # AutoencoderKL is the class of many models: its defaults are none's.
    [case for case in CASES.values() if case.vae.func is not diffusers.AutoencoderKL],
    ids=lambda case: case.name,
)
def test_built_in_facts_are_diffusers_defaults(loaded: Loader, case: Case) -> None:
    """Where a class of diffusers was written for one model, its defaults are that model's facts."""
    vae = type(loaded(case.name).module)
    given = {entry.facts for entry in CATALOG.values() if entry.family == case.family}
    assert FAMILIES[case.family].facts(defaults(vae)) in given


# --- What a configuration says


@each_case
def test_facts_are_those_of_the_module(loaded: Loader, case: Case) -> None:
    """Where a VAE tells its own ratios, they are what was read from its configuration."""
    vae = loaded(case.name)
    own = vars(vae.module)
    spatial = own.get("spatial_compression_ratio", vae.facts.spatial_factor)
    temporal = own.get("temporal_compression_ratio", vae.facts.temporal_factor)
    if not isinstance(vae.entry.layout, VideoFamily):
        temporal = vae.facts.temporal_factor  # an image's VAE may be a video's
    assert (vae.facts.spatial_factor, vae.facts.temporal_factor) == (spatial, temporal)
    assert vae.entry.facts == vae.facts, "an API reads the same from the folder"


@each_case
def test_what_config_json_leaves_out_is_the_classs_default(
    loaded: Loader, case: Case, tmp_path: Path
) -> None:
    """Older files lack what came later: the worker decodes as with the whole configuration.

    The API, which does not know the classes, reads the same facts or leaves them to the worker.
    """
    whole = loaded(case.name)
    whole.module.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    plain = json.loads(json.dumps(dict(defaults(type(whole.module)))))
    kept = {
        key: value
        for key, value in config.items()
        if key == "_class_name" or not (key in plain and plain[key] == value)
    }
    assert len(kept) < len(config)
    path.write_text(json.dumps(kept))
    vae = load_folder(case, tmp_path)
    assert vae.facts == whole.facts
    assert vae.entry.facts in (None, whole.facts)
    assert same_rule(vae.normalization, whole.normalization)
    grid = seeded(*grid_shape(whole.entry.layout, whole.facts, length=1))
    arguments = [read.entry.layout.decode_arguments(grid, read.config) for read in (vae, whole)]
    assert len(arguments[0]) == len(arguments[1])


def same_rule(one: Normalization, other: Normalization) -> bool:
    """Compare two rules value for value; what is left out is another value."""
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]
    return type(one) is type(other) and all(
        torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs
        for ours, theirs in pairs
    )


def test_wan_21_leaves_its_factors_out() -> None:
    """The published configuration of Wan 2.1 has channels and no factors: they are known."""
    config = {"z_dim": 16, "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]}
    assert FAMILIES["wan"].facts(config) == CATALOG["wan"].facts == VaeFacts(16, 8, 4)


@each_case
def test_a_configuration_without_facts_is_refused(loaded: Loader, case: Case) -> None:
    """What a configuration does not say, or says in a way that means nothing, is never guessed."""
    family, config = FAMILIES[case.family], loaded(case.name).config
    expected = family.facts(config)
    with pytest.raises(ValueError, match=r"config\.json has no "):
        family.facts({})
    refused: set[str] = set()
    said: list[str] = []
    for key, nonsense in itertools.product(config, ("x", -1, {}, [], 0.5)):
        try:
            read = family.facts({**config, key: nonsense})
        except ValueError as error:
            refused.add(key)
            said.append(str(error))
        else:
            assert read == expected
    assert all("config.json has no " in message for message in said)
    assert refused


# --- Decoding, against the pipelines


@each_case
def test_the_plan_is_what_is_decoded(loaded: Loader, case: Case) -> None:
    """The shape that is planned before a job is accepted is the shape that decoding gives."""
    vae = loaded(case.name)
    for size in case.sizes:
        latents = case.run(vae.module, size, "latent")
        asked = options(**case.needs(size))
        expected = plan(vae.entry.layout, tuple(latents.shape), asked, vae.facts)
        decoded = decode(vae, latents, asked)
        assert tuple(to_unit(decoded).shape) == unit_shape(expected)
        assert expected.pixels >= decoded.numel() // RGB


@each_case
def test_any_size_that_a_pipeline_takes(loaded: Loader, case: Case) -> None:
    """Whatever size a pipeline was asked for, its latents fit a job that is told the same size.

    Also sizes and numbers of frames that the pipeline rounds: it gives what is planned. And what a
    pipeline makes, before a resize, can be encoded.
    """
    vae, first = loaded(case.name), case.sizes[0]
    factor = vae.facts.temporal_factor
    sizes = [
        replace(first, height=first.height + rows, width=first.width + columns)
        for rows, columns in ((8, 0), (0, 16), (24, 40), (16, 32), (32, 64))
    ]
    if first.num_frames is not None:
        sizes += [replace(first, num_frames=frames) for frames in range(1, 2 * factor + 3)]
    taken = 0
    for size in sizes:
        try:
            latents = case.run(vae.module, size, "latent")
        except (ValueError, RuntimeError):
            continue  # a size that the pipeline refuses
        taken += 1
        asked = options(**whole_size(size))
        planned = plan(vae.entry.layout, tuple(latents.shape), asked, vae.facts)
        assert unit_shape(planned) == tuple(case.run(vae.module, size, "pt").shape), size
        sides = planned.resized_from or (planned.height, planned.width)
        vae.entry.layout.plan_encode((1, RGB, *sides), vae.facts)
    assert taken >= 1


@contextmanager
def computing_in(dtype: torch.dtype) -> Iterator[None]:
    """Make new models and random values in a dtype."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


class GivenError(Exception):
    """Ends a pipeline once it has called its VAE."""


def given_to_the_vae(case: Case, vae: torch.nn.Module, size: Size) -> tuple[Tensor, Any]:
    """Run a pipeline up to its VAE, and return the tensor that it gives it, and what follows."""
    given: list[tuple[Tensor, Any]] = []

    def decode(grid: Tensor, timestep: Any = None, **_: Any) -> None:
        given.append((grid, timestep))
        raise GivenError

    vae.decode = decode
    try:
        with pytest.raises(GivenError):
            case.run(vae, size, "pt")
    finally:
        del vae.decode
    return given[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_case
def test_the_vae_is_given_what_the_pipeline_gives_it(
    loaded: Loader, tmp_path: Path, case: Case, dtype: torch.dtype
) -> None:
    """Layout, scaling and dtype of what the VAE decodes equal the pipeline's, bit for bit."""
    vae = loaded(case.name)
    if dtype is not torch.float32:
        vae.module.save_pretrained(tmp_path)
        vae = load_folder(case, tmp_path, str(dtype).removeprefix("torch."))
    given = []

    def record(grid: Tensor, *arguments: Any, **_: Any) -> None:
        given.append((grid, *arguments))
        raise GivenError

    for size in case.sizes:
        with computing_in(dtype):
            latents = case.run(vae.module, size, "latent")
            expected, timestep = given_to_the_vae(case, vae.module, size)
        vae.module.decode = record
        try:
            with pytest.raises(GivenError):
                decode(replace(vae, exact=None), latents, options(**case.needs(size)))
        finally:
            del vae.module.decode
        grid, *arguments = given.pop()
        assert (grid.dtype, grid.shape) == (dtype, expected.shape)
        assert torch.equal(grid, expected)
        if timestep is not None:
            assert torch.equal(torch.as_tensor(timestep), torch.as_tensor(arguments[0]))
            assert timestep.dtype == arguments[0].dtype


def wrong_rules(normalization: Normalization) -> Iterator[tuple[str, Normalization]]:
    """Leave out each part of a rule that it has, and reverse the channels."""
    if normalization.scale != 1.0:
        yield "no scale", replace(normalization, scale=1.0)
        yield "scale upside down", replace(normalization, scale=1 / normalization.scale)
    if normalization.shift:
        yield "no shift", replace(normalization, shift=0.0)
    if normalization.mean is not None and normalization.std is not None:
        mean, std = normalization.mean, normalization.std
        yield "no mean", replace(normalization, mean=torch.zeros_like(mean))
        yield "no std", replace(normalization, std=torch.ones_like(std))
        yield "std upside down", replace(normalization, std=1 / std)
        yield "statistics reversed", replace(normalization, mean=mean.flip(0), std=std.flip(0))
    yield "channels reversed", reversing(normalization, 1)


def reversing(normalization: Normalization, dimension: int) -> Normalization:
    """Make a rule that reverses one dimension."""

    class Reversing(type(normalization)):
        def undo(self, latents: Tensor) -> Tensor:
            return super().undo(latents).flip(dimension)

    given = {field.name: getattr(normalization, field.name) for field in fields(normalization)}
    return Reversing(**given)


@each_case
def test_a_wrong_rule_shows(loaded: Loader, case: Case) -> None:
    """The right rule gives the pipeline's pictures, and each part of it counts."""
    vae, size = loaded(case.name), case.sizes[0]
    latents, asked = case.run(vae.module, size, "latent"), options(**case.needs(size))
    expected = case.run(vae.module, size, "pt")

    def difference(rule: Normalization) -> float:
        decoded = decode(replace(vae, normalization=rule), latents, asked)
        return (to_unit(decoded) - expected).abs().max().item()

    assert difference(vae.normalization) <= LIMIT
    for name, rule in wrong_rules(vae.normalization):
        assert difference(rule) > SHOWS, name
    if size.num_frames is not None:
        assert difference(reversing(vae.normalization, 2)) > SHOWS, "frames reversed"


# --- Layouts


@each_case
def test_the_batch_axis_may_be_left_out(loaded: Loader, case: Case) -> None:
    """One picture's latents are taken with a batch axis and without, packed and not."""
    vae = loaded(case.name)
    family, facts = vae.entry.layout, vae.facts
    for size in case.sizes:
        if size.batch != 1:
            continue
        latents, asked = case.run(vae.module, size, "latent"), options(**case.needs(size))
        shape = tuple(latents.shape)
        assert family.with_batch(shape, asked, facts) == shape
        assert family.with_batch(shape[1:], asked, facts) == shape
        assert plan(family, shape[1:], asked, facts) == plan(family, shape, asked, facts)
        assert torch.equal(decoding.check(vae, latents[0], asked), latents)


@each_vae
def test_grids_of_every_built_in_vae(vae: VaeEntry) -> None:
    """Unpacked latents are taken by every family, with a size or without, one or several."""
    family, facts = vae.layout, vae.facts
    shape = grid_shape(family, facts)
    one = plan(family, shape, options(), facts)
    assert plan(family, shape[1:], options(), facts) == one
    assert plan(family, (3, *shape[1:]), options(), facts) == replace(one, count=3)
    assert one.pixels == one.height * one.width * (one.frames or 1)
    told = options(height=one.height, width=one.width)
    assert unit_shape(plan(family, shape, told, facts)) == unit_shape(one)
    side = facts.spatial_factor * family.patch
    assert (one.height, one.width) == (2 * side, 3 * side)


UNEVEN = [
    *((16, 16), (64, 64), (64, 96), (64, 128), (512, 48)),
    *((72, 104), (79, 65), (1000, 24), (1000, 40), (31, 17)),
]
FACTOR = 8
"""Pixels on each side of one latent, what the pipelines call `vae_scale_factor`."""


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("height", "width"), UNEVEN)
@pytest.mark.parametrize(
    ("name", "unpack"),
    [
        ("flux", FluxPipeline._unpack_latents),
        ("qwen-image", QwenImagePipeline._unpack_latents),
    ],
)
def test_tokens_unpack_as_in_the_pipelines(
    name: str, unpack: Callable[..., Tensor], height: int, width: int, count: int
) -> None:
    """Packed latents become what the pipeline gives its VAE, also where 16 divides no side."""
    family, facts = FAMILIES[name], VaeFacts(16, FACTOR)
    packed = seeded(count, (height // 16) * (width // 16), 64, seed=height * width)
    asked = options(height=height, width=width)
    ours = family.to_vae(packed, asked, facts, Normalization())
    assert torch.equal(ours, unpack(packed, height, width, FACTOR))
    assert family.plan(tuple(packed.shape), asked, facts) == Decoded(
        count, ours.shape[-2] * FACTOR, ours.shape[-1] * FACTOR
    )


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("height", "width"), UNEVEN)
def test_flux2_takes_three_layouts(height: int, width: int, count: int) -> None:
    """Tokens, patches and the VAE's own grid of the same latents are the same to FLUX.2's VAE.

    The statistics are undone on patches, as in its pipeline.
    """
    family, facts = FAMILIES["flux2"], VaeFacts(32, FACTOR)
    patches = seeded(count, 128, height // 16, width // 16, seed=height * width)
    rule = Normalization(mean=seeded(128, seed=1), std=seeded(128, seed=2).abs())
    expected = Flux2Pipeline._unpatchify_latents(rule.undo(patches))
    asked = options(height=height, width=width)
    layouts = [patches, Flux2Pipeline._pack_latents(patches)]
    layouts.append(Flux2Pipeline._unpatchify_latents(patches))
    for latents in layouts:
        assert torch.equal(family.to_vae(latents, asked, facts, rule), expected)
        assert family.plan(tuple(latents.shape), asked, facts) == Decoded(
            count, expected.shape[2] * FACTOR, expected.shape[3] * FACTOR
        )
    unscaled = family.to_vae(patches, asked, facts, Normalization())
    assert torch.equal(unscaled, Flux2Pipeline._unpatchify_latents(patches))


@pytest.mark.parametrize("shape", [(1, 32, 5, 8), (32, 8, 5)])
def test_flux2_unscales_whole_patches(shape: tuple[int, ...]) -> None:
    """Statistics of patches cannot be undone on a rest; what is not unscaled may have one."""
    family, facts = FAMILIES["flux2"], VaeFacts(32, FACTOR)
    with pytest.raises(LatentsError, match="even height and width") as caught:
        plan(family, shape, options(), facts)
    assert at_fault(caught) == {"latents"}
    for given in ({"scaling": Scaling.NONE}, {"scaling_factor": 2.0}):
        asked = options(**given)
        decoded = plan(family, shape, asked, facts)
        rule = choose_normalization(Normalization(mean=seeded(128), std=seeded(128)), asked)
        latents = seeded(1, *shape[-3:])
        made = family.to_vae(latents, asked, facts, rule)
        assert (made.shape[2] * FACTOR, made.shape[3] * FACTOR) == (decoded.height, decoded.width)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("num_frames", "height", "width"),
    [(1, 32, 32), (9, 64, 96), (12, 96, 64), (25, 64, 128), (121, 40, 70)],
)
def test_ltx_video_unpacks_as_the_pipeline_does(
    num_frames: int, height: int, width: int, count: int
) -> None:
    """Tokens become a video's grid, whether the number of frames is told or not."""
    family, facts = FAMILIES["ltx-video"], VaeFacts(128, 32, 8)
    length, rows, columns = (num_frames - 1) // 8 + 1, height // 32, width // 32
    packed = seeded(count, length * rows * columns, 128)
    expected = LTXPipeline._unpack_latents(packed, length, rows, columns)
    for told in ({}, {"num_frames": num_frames}):
        asked = options(height=height, width=width, **told)
        ours = family.to_vae(packed, asked, facts, Normalization())
        assert torch.equal(ours, expected)
        assert family.plan(tuple(packed.shape), asked, facts) == Decoded(
            count, rows * 32, columns * 32, (length - 1) * 8 + 1
        )


@pytest.mark.parametrize("name", ["flux", "flux2", "qwen-image"])
def test_three_lengths_are_tokens_or_a_grid(name: str) -> None:
    """Tokens that could be a grid without its batch axis are told apart by the size."""
    family, channels = FAMILIES[name], 32 if name == "flux2" else 16
    facts, shape = VaeFacts(channels, FACTOR), (channels, 24, channels * 4)
    fits = options(height=64, width=96)
    assert family.with_batch(shape, fits, facts) == shape
    assert plan(family, shape, fits, facts) == Decoded(channels, 64, 96)
    for asked in (options(), options(height=192, width=channels * 32)):
        assert family.with_batch(shape, asked, facts) == (1, *shape)
        assert plan(family, shape, asked, facts) == Decoded(1, 192, channels * 32)


def test_qwen_image_takes_a_time_axis_of_one() -> None:
    """Grids come with the VAE's time axis or without it, with a batch axis or without."""
    family, facts = FAMILIES["qwen-image"], VaeFacts(16, FACTOR)
    grid = seeded(2, 16, 4, 6)
    for latents in (grid, grid.unsqueeze(2)):
        assert plan(family, tuple(latents.shape), options(), facts) == Decoded(2, 32, 48)
        ours = family.to_vae(latents, options(), facts, Normalization())
        assert torch.equal(ours, grid.unsqueeze(2))
    for shape in ((16, 4, 6), (16, 1, 4, 6)):
        assert plan(family, shape, options(), facts) == Decoded(1, 32, 48)
    with pytest.raises(LatentsError, match=r"\[1, 16, 2, 4, 6\]"):
        plan(family, (1, 16, 2, 4, 6), options(), facts)


def test_cogvideox_takes_frames_first_or_channels_first() -> None:
    """The layout of the pipeline and that of the VAE are told apart by the channels."""
    family, facts = FAMILIES["cogvideox"], VaeFacts(16, 8, 4)
    grid = seeded(2, 16, 3, 4, 6)
    for latents in (grid, grid.transpose(1, 2)):
        assert plan(family, tuple(latents.shape), options(), facts) == Decoded(2, 32, 48, 9)
        assert torch.equal(family.to_vae(latents, options(), facts, Normalization()), grid)
    for shape in ((3, 16, 4, 6), (16, 3, 4, 6)):
        assert plan(family, shape, options(), facts) == Decoded(1, 32, 48, 9)
    assert torch.equal(family.from_vae(grid, Normalization()), grid.transpose(1, 2))
    both = seeded(1, 16, 16, 4, 6)
    as_in_the_pipeline = family.to_vae(both, options(), facts, Normalization())
    assert torch.equal(as_in_the_pipeline, both.transpose(1, 2))


# --- Scaling


@each_case
def test_applying_is_the_inverse_of_undoing(loaded: Loader, case: Case) -> None:
    """What encoding scales, decoding takes back."""
    rule = loaded(case.name).normalization
    channels = loaded(case.name).facts.latent_channels if rule.mean is None else len(rule.mean)
    latents = seeded(2, channels, 4, 6)
    torch.testing.assert_close(rule.apply(rule.undo(latents)), latents)
    torch.testing.assert_close(rule.undo(rule.apply(latents)), latents)


def test_what_changes_nothing_is_left_out() -> None:
    """Latents are divided, then shifted, with the operations of the pipelines and no other."""
    z = seeded(1, 4, 8, 8)
    assert Normalization().undo(z) is z
    assert Normalization().apply(z) is z
    assert torch.equal(Normalization(0.18215).undo(z), z / 0.18215)
    assert torch.equal(Normalization(0.3611, 0.1159).undo(z), z / 0.3611 + 0.1159)
    assert torch.equal(Normalization(0.3611, 0.1159).apply(z), (z - 0.1159) * 0.3611)


OWN = Normalization(0.3611, 0.1159)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, OWN),
        ({"scaling": Scaling.VAE}, OWN),
        ({"scaling": Scaling.NONE}, Normalization()),
        ({"scaling_factor": 2.0}, Normalization(2.0)),
        ({"shift_factor": 3.0}, Normalization(shift=3.0)),
        ({"shift_factor": 0.0}, Normalization()),
        ({"scaling_factor": 2.0, "shift_factor": 3.0}, Normalization(2.0, 3.0)),
    ],
    ids=str,
)
def test_a_job_chooses_its_scaling(given: dict[str, Any], expected: Normalization) -> None:
    """The VAE's own, none, or the caller's factors: those that are given exclude the VAE's own."""
    assert choose_normalization(OWN, options(**given)) == expected


# --- Encoding


def encodable(case: Case, facts: VaeFacts) -> Iterator[tuple[int, ...]]:
    """List shapes of pixels: two pictures, or for video also all numbers of frames."""
    side = facts.spatial_factor * FAMILIES[case.family].patch
    yield (2, RGB, side, 2 * side)
    if isinstance(FAMILIES[case.family], VideoFamily):
        for frames in range(1, 2 * facts.temporal_factor + 2):
            yield (1, RGB, frames, side, 2 * side)


@each_case
def test_encoded_latents_are_those_that_decode(loaded: Loader, case: Case) -> None:
    """Pixels become latents of the planned shape, in a layout and scale that decoding takes back.

    Numbers of frames that a VAE does not give back are refused, with those around that it takes.
    """
    vae = loaded(case.name)
    family, facts = vae.entry.layout, vae.facts
    encoded: set[tuple[int, ...]] = set()
    refused: dict[int, str] = {}
    for shape in encodable(case, facts):
        try:
            planned = family.plan_encode(shape, facts)
        except LatentsError as error:
            refused[shape[2]] = str(error)
            continue
        encoded.add(shape[2:-2])
        pixels = seeded(*shape).clamp(-1, 1)
        with torch.inference_mode():
            latents, _ = decoding.encode(vae, pixels, options(task="encode"))
            unscaled, _ = decoding.encode(vae, pixels, options(task="encode", scaling="none"))
        count, *_, height, width = shape
        frames = None if len(shape) == 4 else shape[2]
        if len(shape) == 4 and isinstance(family, VideoFamily):
            frames = 1
        for made in (latents, unscaled):
            assert plan(family, tuple(made.shape), options(), facts) == Decoded(
                count, height, width, frames
            )
        grid = family.to_vae(latents, options(), facts, vae.normalization)
        own = family.to_vae(unscaled, options(), facts, Normalization())
        assert own.squeeze(2).shape == torch.empty(planned).squeeze(2).shape
        torch.testing.assert_close(grid, own, rtol=1e-4, atol=1e-4)
    if isinstance(family, VideoFamily):
        assert {(1,), (family.frames(2, facts),)} <= encoded
    assert all(f"frames, not {frames}" in message for frames, message in refused.items())


def test_the_side_of_each_family() -> None:
    """Pictures are encoded in multiples of what a model generates from, not only its VAE."""
    sides = {vae.name: vae.layout.side(vae.facts) for vae in CATALOG.values()}
    assert sides == {
        **dict.fromkeys(("sd-v1", "sdxl", "taesd", "taesdxl", "demo"), 8),
        **dict.fromkeys(("sd3", "flux", "flux2", "qwen-image", "taesd3", "taef1", "wan"), 16),
        **dict.fromkeys(("hunyuan-video", "cogvideox", "mochi"), 8),
        **dict.fromkeys(("sana", "ltx-video"), 32),
    }


def test_the_rate_of_each_family() -> None:
    """A video without fps plays at the rate with which its model's own examples are saved."""
    rates = {name: family.fps for name, family in FAMILIES.items() if family.fps is not None}
    assert rates == {
        "hunyuan-video": 15.0,
        "wan": 16.0,
        "ltx-video": 24.0,
        "cogvideox": 8.0,
        "mochi": 30.0,
    }


@each_vae
def test_pixels_that_cannot_be_encoded(vae: VaeEntry) -> None:
    """Pixels of another shape, or with sides that leave a rest, are refused with what would fit."""
    family, facts = vae.layout, vae.facts
    side = family.side(facts)
    good = (1, RGB, 2 * side, side)
    family.plan_encode(good, facts)
    for shape in (good[1:], (1, 4, *good[2:]), (1, 1, *good[2:]), (1, 4, 1, *good[2:]), good * 2):
        with pytest.raises(LatentsError) as caught:
            family.plan_encode(shape, facts)
        assert at_fault(caught) == {"picture"}
        assert "[batch, 3, " in str(caught.value)
        assert str(list(shape)) in str(caught.value)
    for height, width in ((side + 1, side), (side, 2 * side - 1), (side // 2, side)):
        with pytest.raises(LatentsError, match=f"multiples of {side} .*not {height} x {width}"):
            family.plan_encode((1, RGB, height, width), facts)


def test_uint8_pixels_are_mapped_as_in_diffusers() -> None:
    """uint8 pixels, channels first or last, become what diffusers makes of the same picture."""
    pixels = torch.randint(0, 256, (8, 16, RGB), dtype=torch.uint8)
    picture = Image.fromarray(pixels.numpy())
    expected = VaeImageProcessor(vae_scale_factor=8).preprocess(picture)
    for given in (pixels, pixels[None], pixels.permute(2, 0, 1), pixels.permute(2, 0, 1)[None]):
        assert planes_shape(tuple(given.shape), "uint8") == (1, RGB, 8, 16)
        torch.testing.assert_close(to_planes(given), expected)
    video = pixels.expand(1, 5, 8, 16, RGB)
    assert planes_shape(tuple(video.shape), "uint8") == tuple(to_planes(video).shape)
    assert tuple(to_planes(video).shape) == (1, RGB, 5, 8, 16)
    floats = seeded(1, RGB, 8, 16)
    assert to_planes(floats) is floats


# --- What does not fit


@each_vae
def test_other_channels_and_dimensions(vae: VaeEntry) -> None:
    """Latents of another kind are refused by name, with the channels that fit and what came."""
    family, facts = vae.layout, vae.facts
    channels = facts.latent_channels
    good = grid_shape(family, facts)
    axis = good.index(channels, 1)
    others = [
        (*good[:axis], count, *good[axis + 1 :])
        for count in (1, 3, channels - 1, channels + 1, 2 * channels)
    ]
    dimensions = [(channels,), (1, *good, 1), (1, 1, *good), good[:1] * 8]
    for shape in [*others, *[other[1:] for other in others], *dimensions]:
        with pytest.raises(LatentsError) as caught:
            plan(family, shape, options(), facts)
        assert at_fault(caught) == {"latents"}
        said = str(caught.value)
        assert f"[batch, {channels}, " in said or f"[batch, frames, {channels}, " in said
        assert f"{list(shape)} " in said, "the shape is the one that came"


@each_vae
def test_a_size_that_disagrees(vae: VaeEntry) -> None:
    """Latents that give another size than was asked for are refused with both sizes."""
    family, facts = vae.layout, vae.facts
    shape = grid_shape(family, facts)
    own = plan(family, shape, options(), facts)
    for height, width in ((own.height * 8, own.width), (own.height * 5, own.width * 5)):
        with pytest.raises(LatentsError) as caught:
            plan(family, shape, options(height=height, width=width), facts)
        assert at_fault(caught) == {"height"}
        said = str(caught.value)
        assert f"{own.height} x {own.width} pixels" in said
        assert f"{height} x {width}" in said


@pytest.mark.parametrize(
    "vae",
    [vae for vae in CATALOG.values() if isinstance(vae.layout, VideoFamily)],
    ids=lambda vae: vae.name,
)
def test_a_number_of_frames_that_disagrees(vae: VaeEntry) -> None:
    """Latents that give other frames than were asked for are refused with both numbers."""
    family, facts = vae.layout, vae.facts
    for length in (1, 2, 3, 6):
        shape = grid_shape(family, facts, length)
        own = plan(family, shape, options(), facts)
        plan(family, shape, options(num_frames=own.frames), facts)
        far = own.frames + 2 * facts.temporal_factor
        with pytest.raises(LatentsError) as caught:
            plan(family, shape, options(num_frames=far), facts)
        assert at_fault(caught) == {"num_frames"}
        said = str(caught.value)
        assert f"give {own.frames} frames; {far} frames" in said


def of_kind(kind: type) -> list[VaeEntry]:
    """List one built-in VAE for each family of a kind."""
    by_family = {vae.family: vae for vae in CATALOG.values() if isinstance(vae.layout, kind)}
    return list(by_family.values())


@pytest.mark.parametrize(
    "vae", of_kind(PackedFamily) + of_kind(PackedVideoFamily), ids=lambda vae: vae.family
)
def test_tokens_need_a_size(vae: VaeEntry) -> None:
    """Packed latents without a size are refused by asking for it."""
    family, facts = vae.layout, vae.facts
    assert family.packed
    channels = facts.latent_channels * family.patch**2
    for shape in ((1, 24, channels), (2, 24, channels), (24, channels)):
        with pytest.raises(LatentsError, match="packed latents need height and width") as caught:
            plan(family, shape, options(), facts)
        assert at_fault(caught) == {"height"}
    with pytest.raises(LatentsError, match=f"{channels} channels") as caught:
        plan(family, (1, 24, channels - 4), options(height=512, width=512), facts)
    assert at_fault(caught) == {"latents"}


@pytest.mark.parametrize("tokens", [1, 7, 24, 4096, 4050])
@pytest.mark.parametrize("vae", of_kind(PackedFamily), ids=lambda vae: vae.family)
def test_tokens_that_disagree_with_the_size(vae: VaeEntry, tokens: int) -> None:
    """The answer names a size that has so many tokens, and that size is then accepted."""
    family, facts = vae.layout, vae.facts
    shape = (1, tokens, facts.latent_channels * 4)
    for height, width in ((160, 1008), (8, 8)):
        with pytest.raises(LatentsError) as caught:
            plan(family, shape, options(height=height, width=width), facts)
        assert at_fault(caught) == {"height"}
        (fault,) = caught.value.errors
        assert f"{height} x {width} has " in fault.message
        advice = fault.message.split(" must be ")[1].split(" or another size ")[0]
        rows, columns = map(int, advice.split(" x "))
        assert plan(family, shape, options(height=rows, width=columns), facts).height == rows
    if tokens == 4096:
        assert "must be 1024 x 1024 or another size with 4096 patches of 16 x 16" in fault.message


@pytest.mark.parametrize(
    ("tokens", "told", "field", "message"),
    [
        (24, {"height": 64, "width": 32}, None, ""),
        (25, {"height": 64, "width": 64}, "height", "2 x 2 .*6 latent frames, 24 in all, but 25"),
        (24, {"height": 16, "width": 64}, "height", "0 x 2 latents"),
        (24, {"height": 64, "width": 64, "num_frames": 9}, "num_frames", "8 in all, but 24 came"),
        (3, {"height": 64, "width": 64}, "height", "but 3 came"),
    ],
)
def test_ltx_video_says_what_does_not_fit(
    tokens: int, told: dict[str, int], field: str | None, message: str
) -> None:
    """Tokens that fill no whole number of frames are refused with the arithmetic."""
    family, facts = FAMILIES["ltx-video"], VaeFacts(128, 32, 8)
    assert isinstance(family, PackedVideoFamily)
    if field is None:
        assert plan(family, (1, tokens, 128), options(**told), facts).frames == 89
        return
    with pytest.raises(LatentsError, match=message) as caught:
        plan(family, (1, tokens, 128), options(**told), facts)
    assert at_fault(caught) == {field}


@pytest.mark.parametrize(
    ("name", "factor", "expected"),
    [
        ("hunyuan-video", 4, {1: 1, 4: 1, 5: 2, 8: 2, 9: 3, 11: 3}),
        ("wan", 4, {1: 1, 3: 1, 4: 2, 5: 2, 7: 2, 8: 3, 9: 3, 11: 3}),
        ("ltx-video", 8, {1: 1, 8: 1, 9: 2, 16: 2, 17: 3}),
        ("cogvideox", 4, {1: 1, 4: 1, 5: 2, 8: 2, 9: 3, 12: 3}),
        ("mochi", 6, {1: 1, 6: 1, 7: 2, 12: 2, 13: 3}),
    ],
)
def test_the_latent_frames_of_so_many_frames(
    name: str, factor: int, expected: dict[int, int]
) -> None:
    """A number of frames that a pipeline rounds has the latent frames that it generates."""
    family, facts = FAMILIES[name], VaeFacts(16, 8, factor)
    assert isinstance(family, VideoFamily)
    assert {frames: family.latent_frames(frames, facts) for frames in expected} == expected


@pytest.mark.parametrize(
    ("length", "num_frames", "frames"),
    [
        *((1, None, 1), (2, None, 8), (3, None, 9), (4, None, 16), (5, None, 17)),
        *((1, 1, 1), (2, 1, 1), (2, 5, 8), (2, 8, 8), (3, 9, 9), (4, 9, 9), (4, 13, 16)),
        *((6, 17, 17), (5, 17, 17)),
    ],
)
def test_cogvideox_pads_an_odd_number_of_latent_frames(
    length: int, num_frames: int | None, frames: int
) -> None:
    """With `num_frames`, one latent frame of padding is dropped in front, and nothing else is."""
    family, facts = FAMILIES["cogvideox"], VaeFacts(16, 8, 4)
    latents = seeded(1, length, 16, 2, 2)
    asked = options(num_frames=num_frames)
    assert plan(family, tuple(latents.shape), asked, facts) == Decoded(1, 16, 16, frames)
    grid = family.to_vae(latents, asked, facts, Normalization())
    assert torch.equal(grid, latents[:, -grid.shape[2] :].transpose(1, 2))


@pytest.mark.parametrize(("length", "num_frames"), [(3, 5), (3, 1), (2, 9), (5, 9), (6, 13)])
def test_cogvideox_has_no_other_padding(length: int, num_frames: int) -> None:
    """More latent frames than an odd number's padding, or fewer, are refused as they came."""
    family, facts = FAMILIES["cogvideox"], VaeFacts(16, 8, 4)
    with pytest.raises(LatentsError) as caught:
        plan(family, (1, length, 16, 2, 2), options(num_frames=num_frames), facts)
    assert at_fault(caught) == {"num_frames"}
    assert f"latents of shape {[1, length, 16, 2, 2]} have {length} latent frames" in str(
        caught.value
    )


def test_sana_takes_every_size_that_binning_makes() -> None:
    """Any size that its pipeline resizes to is taken, and the picture has that size."""
    family, facts = FAMILIES["sana"], VaeFacts(32, 32)
    sides = (32, 65, 250, 512, 700, 1024, 1333, 2048, 4000)
    for height, width in itertools.product(sides, sides):
        if not 1 / 4 <= height / width <= 4:
            continue
        rows, columns = PixArtImageProcessor.classify_height_width_bin(
            height, width, ratios=ASPECT_RATIO_1024_BIN
        )
        shape, asked = (1, 32, rows // 32, columns // 32), options(height=height, width=width)
        planned = plan(family, shape, asked, facts)
        assert (planned.height, planned.width) == (height, width)


def test_sana_counts_the_pixels_before_a_resize() -> None:
    """A small size does not hide how much there is to decode."""
    family, facts = FAMILIES["sana"], VaeFacts(32, 32)
    for height, width in ((32, 32), (4096, 4096)):
        planned = plan(family, (2, 32, 32, 32), options(height=height, width=width), facts)
        assert (planned.height, planned.width) == (height, width)
        assert planned.pixels == 2 * max(1024 * 1024, height * width)


@pytest.mark.parametrize(("height", "width"), [(4097, 1024), (8192, 8192), (1024, 5), (30, 900)])
def test_sana_refuses_sizes_that_no_binning_makes(height: int, width: int) -> None:
    """A size that is much larger, or of another aspect ratio, is a mistake."""
    with pytest.raises(LatentsError, match=r"give 1024 x 1024 pixels: too far from") as caught:
        plan(
            FAMILIES["sana"], (1, 32, 32, 32), options(height=height, width=width), VaeFacts(32, 32)
        )
    assert at_fault(caught) == {"height"}
