"""HunyuanVideo's VAE decoded in bands: the frames of an untiled decode, without its mask."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor, nn
from torch.nn import functional

from darkroom_infra.catalog import VaeEntry
from darkroom_wire.jobs import JobOptions
from darkroom_worker.banded import BandedDecoder, Mode, convolution, devices, maps, supports
from darkroom_worker.banded.decoder import VIDEO_HEAP_BYTES
from darkroom_worker.banded.volumes import VolumeParityKernels
from darkroom_worker.cache import VaeCache
from darkroom_worker.engine import Engine
from darkroom_worker.loading import load, locate
from darkroom_worker.requests import DeviceRequest

from .test_banded import CONTRAST, MODES, WORST, distance, error, memory, peak_bytes, whole

SECONDS = 60
"""How long a decode may take before something is wrong."""

CHANNELS = 16
"""Of latents."""

SHAPES = [(1, 1, 2), (1, 4, 3), (2, 3, 5), (3, 1, 4), (5, 6, 7), (8, 2, 2)]
"""The frames, height and width of latents.

Of a single latent every pixel is the same: GroupNorms would divide by the rounding of that.
"""


def make_vae(widths: tuple[int, ...] = (8, 8, 16, 16), **config: Any) -> Any:
    """Make a VAE with random weights that decodes every video in one piece."""
    torch.manual_seed(0)
    settings = {"layers_per_block": 1, "norm_num_groups": 4, **config}
    vae: Any = AutoencoderKLHunyuanVideo(block_out_channels=widths, **settings).eval()
    for name, parameter in vae.decoder.named_parameters():
        if "norm" in name:  # GroupNorms that do nothing would hide those that are forgotten
            nn.init.normal_(parameter, float(name.endswith("weight")), 0.2)
    vae.use_framewise_decoding = False
    with torch.no_grad():
        last = vae.decoder.conv_out.conv
        last.weight *= CONTRAST / vae.decode(latents(3, 4, 4)).sample.std()
        last.bias *= 0
    return vae


def latents(frames: int, height: int, width: int, batch: int = 1) -> Tensor:
    """Make random latents."""
    generator = torch.Generator().manual_seed(frames * 10000 + height * 100 + width)
    return torch.randn(batch, CHANNELS, frames, height, width, generator=generator)


@pytest.fixture(scope="module")
def vae() -> Any:
    """A VAE with the real structure and few channels."""
    return make_vae()


@pytest.fixture(autouse=True)
def _small_bands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make bands so narrow that small videos have many."""
    if request.node.originalname == "test_memory_is_predicted":
        return
    monkeypatch.setitem(memory().WORKING_BYTES, "cpu", 1 << 14)
    monkeypatch.setattr(memory(), "WORKING_PIXELS", 64)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_frames_are_those_of_a_whole_decode(
    vae: Any, shape: tuple[int, int, int], mode: Mode
) -> None:
    """One frame or many, odd sizes: the frames are the same in each mode, to float rounding."""
    z = latents(*shape)
    expected = whole(vae, z)
    assert expected.std() > CONTRAST / 2
    decoded = BandedDecoder(vae).decode(z, mode)
    assert decoded.dtype == torch.float32
    assert distance(decoded, expected) <= WORST


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("band", [1, 2, 3, 1000])
def test_the_bands_do_not_show(
    vae: Any, band: int, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of rows of a band, the frames are the same: there are no seams."""
    monkeypatch.setitem(memory().WORKING_BYTES, "cpu", 1)
    monkeypatch.setattr(memory(), "WORKING_PIXELS", band * 3 * 6)
    z = latents(3, 5, 6)
    assert distance(BandedDecoder(vae).decode(z, mode), whole(vae, z)) <= WORST


@pytest.mark.parametrize("mode", MODES)
def test_each_video_of_a_batch_is_decoded(vae: Any, mode: Mode) -> None:
    """A batch gives the videos that its members give alone, each with its own normalisation."""
    z = latents(3, 2, 3, batch=3) * torch.tensor([0.1, 1, 3]).view(3, 1, 1, 1, 1)
    decoder = BandedDecoder(vae)
    decoded = decoder.decode(z, mode)
    assert distance(decoded, whole(vae, z)) <= WORST
    for index in range(3):
        assert torch.equal(decoded[index : index + 1], decoder.decode(z[index : index + 1], mode))


OTHERS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "no attention": ((8, 8, 16, 16), {"mid_block_add_attention": False}),
    "as deep as HunyuanVideo's": ((8, 8, 16, 16), {"layers_per_block": 2}),
    "a group for each channel": ((8, 8, 8, 8), {"norm_num_groups": 8}),
    "wider at the latents": ((8, 16, 24, 32), {}),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OTHERS)
def test_other_decoders_of_the_same_blocks_are_exact(name: str, mode: Mode) -> None:
    """The structure is read from the VAE: widths, depths, groups, attention, 1 x 1 x 1 layers."""
    widths, config = OTHERS[name]
    vae = make_vae(widths, **config)
    z = latents(3, 4, 5)
    assert distance(BandedDecoder(vae).decode(z, mode), whole(vae, z)) <= WORST


@pytest.mark.parametrize("mode", MODES)
def test_wide_layers_are_exact_too(vae: Any, mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that are wide enough for Winograd's method along the rows give the same frames."""
    monkeypatch.setattr(convolution, "WINOGRAD_CHANNELS", 8)
    monkeypatch.setattr(convolution, "WINOGRAD_PIXELS", 1)
    for shape in ((1, 1, 2), (2, 3, 5), (3, 9, 2)):
        z = latents(*shape)
        assert distance(BandedDecoder(vae).decode(z, mode), whole(vae, z)) <= WORST


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_goes_the_gpus_way_too(
    vae: Any, shape: tuple[int, int, int], mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows that close with the last row, and rows in one piece for kernels: the same frames."""
    monkeypatch.setattr(devices, "kind", lambda _: "gpu")
    monkeypatch.setitem(memory().WORKING_BYTES, "gpu", 1 << 14)
    z = latents(*shape)
    taken: list[None] = []
    decoder = BandedDecoder(vae)
    decoded = decoder.decode(z, mode, lambda: taken.append(None))
    assert distance(decoded, whole(vae, z)) <= WORST
    assert len(taken) == decoder.steps(tuple(z.shape), mode)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
def test_half_precision_is_no_further_from_float32(mode: Mode, dtype: torch.dtype) -> None:
    """In half precision the frames are as near to the float32 ones as diffusers' own are."""
    vae, half = make_vae(), make_vae().to(dtype)
    vae.load_state_dict(half.state_dict())
    z = latents(3, 6, 8).to(dtype)
    expected = whole(vae, z.float())
    decoded = BandedDecoder(half).decode(z, mode)
    assert decoded.dtype == dtype
    assert error(decoded, expected) <= error(whole(half, z), expected)


@pytest.mark.parametrize("mode", MODES)
def test_memory_is_free_when_a_decode_is_over(
    vae: Any, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits for the garbage collector: filters in a circle of references would add up."""
    monkeypatch.setattr(convolution, "WINOGRAD_CHANNELS", 8)
    monkeypatch.setattr(convolution, "WINOGRAD_PIXELS", 1)
    decoder, z = BandedDecoder(vae), latents(2, 5, 3)
    gc.collect()
    gc.disable()
    try:
        decoder.decode(z, mode)
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert not [left for left in gc.garbage if isinstance(left, Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("doubles_frames", [True, False])
def test_a_convolution_of_repeated_frames_is_several_of_the_small_ones(
    *, doubles_frames: bool
) -> None:
    """The kernels by parity give what doubling and a causal 3 x 3 x 3 convolution give."""
    torch.manual_seed(0)
    layer, mixing = nn.Conv3d(5, 6, 3), nn.Conv3d(6, 4, 1)
    frames, height, width = 4, 3, 2
    x = torch.randn(1, 5, frames, height, width)
    times = 2 if doubles_frames else 1
    with torch.no_grad():
        doubled = functional.interpolate(x, scale_factor=(times, 2, 2))[:, :, times - 1 :]
        padded = functional.pad(doubled, (1, 1, 1, 1, 2, 0), mode="replicate")
        for then in (None, mixing):
            expected = layer(padded) if then is None else then(layer(padded))
            kernels = VolumeParityKernels.of(layer, then, frames, doubles_frames=doubles_frames)
            rows = functional.pad(x, (0, 0, 1, 1, 0, 0), mode="replicate").permute(0, 3, 2, 4, 1)
            window = rows.new_empty(1, height + 2, kernels.border.width(frames * width), 5)
            kernels.border.fill(window, rows.flatten(2, 3), lambda given, out: out.copy_(given))
            made = kernels(window).view(1, 2 * height, -1, 2 * width, expected.shape[1])
            assert distance(made.permute(0, 4, 2, 1, 3), expected) < 1e-5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (1, 3, 5, 4), (2, 2, 3, 3)])
def test_steps_are_counted_exactly(vae: Any, shape: tuple[int, int, int, int], mode: Mode) -> None:
    """Progress reaches its end with the last step, neither before nor after."""
    batch, *size = shape
    z = latents(*size, batch=batch)
    taken: list[None] = []
    decoder = BandedDecoder(vae)
    decoder.decode(z, mode, lambda: taken.append(None))
    assert len(taken) == decoder.steps(tuple(z.shape), mode) > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_decode_can_be_abandoned_at_any_step(vae: Any, mode: Mode) -> None:
    """What `on_step` raises comes out, and the next decode is as good as ever."""

    class StopError(Exception):
        pass

    decoder, z = BandedDecoder(vae), latents(2, 3, 2)
    expected = decoder.decode(z, mode)
    steps = decoder.steps(tuple(z.shape), mode)
    for stop in (0, steps // 2, steps - 1):
        left = iter(range(stop))

        def step(left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise StopError

        with pytest.raises(StopError):
            decoder.decode(z, mode, step)
        assert torch.equal(decoder.decode(z, mode), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(3, 20, 16), (9, 12, 8)])
def test_memory_is_predicted(
    shape: tuple[int, int, int], mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget holds: the peak of all tensors is within 15 % of the prediction."""
    vae = make_vae((32, 64, 128, 128), layers_per_block=2)
    decoder, z = BandedDecoder(vae), latents(*shape)
    # Pages that PyTorch did not reserve it cannot count, nor those that are not yet written.
    monkeypatch.setattr(
        maps, "allocate", lambda like, size, dtype: like.new_empty(size, dtype=dtype)
    )
    monkeypatch.setattr(maps, "reserves_ahead", lambda _: False)
    peak = peak_bytes(lambda: decoder.decode(z, mode))
    predicted = decoder.predicted_bytes(tuple(z.shape), mode) - VIDEO_HEAP_BYTES
    assert predicted == pytest.approx(peak, rel=0.15)


def test_the_vae_is_left_as_it_was() -> None:
    """Neither weights nor their layout change, and the VAE decodes as before."""
    vae = make_vae()
    z = latents(2, 3, 2)
    before = {name: (value.clone(), value.stride()) for name, value in vae.state_dict().items()}
    expected = whole(vae, z)
    for mode in MODES:
        BandedDecoder(vae).decode(z, mode)
    for name, value in vae.state_dict().items():
        assert torch.equal(value, before[name][0])
        assert value.stride() == before[name][1]
    assert torch.equal(whole(vae, z), expected)


def _other_activation(vae: Any) -> None:
    vae.decoder.mid_block.resnets[0].nonlinearity = nn.GELU()


def _other_padding(vae: Any) -> None:
    vae.decoder.up_blocks[0].resnets[0].conv1.pad_mode = "constant"


def _not_causal(vae: Any) -> None:
    vae.decoder.conv_out.time_causal_padding = (1, 1, 1, 1, 1, 1)


def _other_factor(vae: Any) -> None:
    vae.decoder.up_blocks[1].upsamplers[0].upsample_factor = (4, 2, 2)


def _patched(vae: Any) -> None:
    vae.decoder.conv_in.forward = vae.decoder.conv_in.forward


CHANGES: dict[str, Callable[[Any], object]] = {
    "tiles": lambda vae: vae.enable_tiling(),
    "slices": lambda vae: vae.enable_slicing(),
    "training": lambda vae: vae.train(),
    "float64": lambda vae: vae.double(),
    "other decode": lambda vae: setattr(vae, "_decode", vae._decode),
    "other activation": _other_activation,
    "other padding": _other_padding,
    "not causal": _not_causal,
    "other factor": _other_factor,
    "patched layer": _patched,
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_decodes_otherwise_is_left_to_diffusers(name: str) -> None:
    """A VAE that tiles, slices or was changed is not one whose frames are known."""
    vae = make_vae()
    assert supports(vae)
    CHANGES[name](vae)
    assert not supports(vae)
    with pytest.raises(ValueError, match="not known"):
        BandedDecoder(vae)


def test_videos_that_the_pipeline_tiles_are_not_decoded_otherwise() -> None:
    """From 17 frames on, HunyuanVideo's VAE blends tiles of time by default: that is left so."""
    vae = make_vae()
    decoder = BandedDecoder(vae)
    assert decoder.applies((1, CHANNELS, 100, 2, 2))
    vae.use_framewise_decoding = True
    assert decoder.applies((1, CHANNELS, 4, 2, 2))
    assert not decoder.applies((1, CHANNELS, 5, 2, 2))


@pytest.mark.parametrize(
    ("tiles", "frames", "faster", "method"),
    [
        (True, 4, False, "whole"),
        (True, 4, True, "exact-banded"),
        (True, 5, True, "temporal-tiles"),
        (False, 5, False, "whole"),
        (False, 5, True, "exact-banded"),
    ],
)
def test_the_engine_tells_how_it_decoded(
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiles: bool,
    frames: int,
    faster: bool,
    method: str,
) -> None:
    """Long videos are decoded in tiles, as the pipeline does, unless the catalogue says no."""
    monkeypatch.setattr(BandedDecoder, "is_faster", lambda _self, _shape: faster)
    vae = make_vae()
    vae.save_pretrained(tmp_path)
    entry = VaeEntry(
        name="hunyuan",
        family="hunyuan-video",
        source=str(tmp_path),
        dtype="float32",
        temporal_tiles=tiles,
    )
    z = latents(frames, 3, 2)
    vae.use_framewise_decoding = tiles
    load_on_cpu = partial(load, device=torch.device("cpu"), dtype="auto")
    engine = Engine(VaeCache(locate, load_on_cpu, lambda: 1 << 50))
    request = DeviceRequest(entry, z, JobOptions(vae="hunyuan", scaling="none"))
    engine.submit(request)
    result = request.future.result(SECONDS)
    assert result.way["method"] == method
    assert distance(result.tensor, whole(vae, z)) <= WORST
