"""The exact banded decode: the pictures of `vae.decode`, for any size, in each mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import accumulate
from typing import Any

import pytest
import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLTemporalDecoder,
    AutoencoderOobleck,
    VQModel,
)
from diffusers.models.attention_processor import SlicedAttnProcessor
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from darkroom_worker.banded import BandedDecoder, Mode, maps, supports
from darkroom_worker.banded.convolution import ParityKernels, _convolve_columns
from darkroom_worker.banded.layout import to_channels_first, to_rows
from darkroom_worker.banded.maps import MapShape, PackedMap, PlainMap
from darkroom_worker.banded.norm import Moments
from darkroom_worker.banded.winograd import FILTERS, INPUTS, OUTPUTS, WinogradRows
from darkroom_worker.footprint import HEAP_BYTES
from tests.pipelines import CASES
from tests.vaes import make_kl, make_tiny

MODES = list(Mode)
CONTRAST = 0.8
"""The standard deviation of decoded pictures, about that of real ones."""

WORST = 1e-4
"""How far a float32 picture may be from diffusers' own, whose rounding differs as much."""

SIZES = [(1, 1), (1, 9), (9, 1), (2, 3), (5, 7), (8, 8), (13, 40), (40, 13), (33, 31)]


def make_vae(
    widths: tuple[int, ...] = (32, 64, 96), cls: type[Any] = AutoencoderKL, **config: Any
) -> Any:
    """Make a VAE with random weights whose pictures of random latents have contrast."""
    torch.manual_seed(0)
    levels = len(widths)
    settings = {"latent_channels": 4, "layers_per_block": 1, **config}
    vae = cls(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        **settings,
    ).eval()
    for name, parameter in vae.decoder.named_parameters():
        if "norm" in name:  # GroupNorms that do nothing would hide those that are forgotten
            nn.init.normal_(parameter, float(name.endswith("weight")), 0.2)
    return with_contrast(vae)


def with_contrast(vae: Any) -> Any:
    """Scale the last layer so that pictures have the usual deviation."""
    with torch.no_grad():
        decoded = vae.decode(latents(vae, 8, 8)).sample
        vae.decoder.conv_out.weight *= CONTRAST / decoded.std()
        vae.decoder.conv_out.bias *= 0
    return vae


def latents(vae: Any, height: int, width: int, batch: int = 1) -> Tensor:
    """Make random latents."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    channels = vae.config.latent_channels
    return torch.randn(batch, channels, height, width, generator=generator)


@torch.no_grad()
def whole(vae: Any, z: Tensor) -> Tensor:
    """Decode as diffusers does."""
    decoded: Tensor = vae.decode(z, return_dict=False)[0]
    return decoded


def distance(first: Tensor, second: Tensor) -> float:
    """Give the largest difference."""
    assert first.shape == second.shape
    return float((first.double() - second.double()).abs().max())


def error(picture: Tensor, expected: Tensor) -> float:
    """Give the root of the mean squared difference."""
    return float((picture.float() - expected).square().mean().sqrt())


@pytest.fixture(scope="module")
def vae() -> Any:
    """A VAE with three levels, attention and blocks with a 1 x 1 shortcut."""
    return make_vae()


@pytest.fixture(autouse=True)
def _small_bands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make bands so narrow that small pictures have many."""
    if request.node.originalname == "test_memory_is_predicted":
        return
    monkeypatch.setitem(memory().WORKING_BYTES, "cpu", 1 << 14)
    monkeypatch.setattr(memory(), "WORKING_PIXELS", 64)


def memory() -> Any:
    """Give the module that chooses the bands."""
    import darkroom_worker.banded.memory as module

    return module


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pictures_are_those_of_a_whole_decode(
    vae: Any, height: int, width: int, mode: Mode
) -> None:
    """Odd, tall, wide and tiny pictures are the same in each mode, to float rounding."""
    z = latents(vae, height, width)
    expected = whole(vae, z)
    decoded = BandedDecoder(vae).decode(z, mode)
    assert decoded.dtype == torch.float32
    assert distance(decoded, expected) <= WORST


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("band", [1, 2, 3, 5, 8, 1000])
def test_the_bands_do_not_show(
    vae: Any, band: int, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of rows of a band, the picture is the same: there are no seams."""
    monkeypatch.setitem(memory().WORKING_BYTES, "cpu", 1)
    monkeypatch.setattr(memory(), "WORKING_PIXELS", band * 12)
    z = latents(vae, 8, 12)
    assert distance(BandedDecoder(vae).decode(z, mode), whole(vae, z)) <= WORST


@pytest.mark.parametrize("mode", MODES)
def test_each_picture_of_a_batch_is_decoded(vae: Any, mode: Mode) -> None:
    """A batch gives the pictures that its members give alone, bit for bit on a CPU."""
    z = latents(vae, 6, 5, batch=3)
    decoder = BandedDecoder(vae)
    decoded = decoder.decode(z, mode)
    assert distance(decoded, whole(vae, z)) <= WORST
    for index in range(3):
        assert torch.equal(decoded[index : index + 1], decoder.decode(z[index : index + 1], mode))


@pytest.mark.parametrize("mode", MODES)
def test_pictures_can_be_decoded_together(
    vae: Any, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a batch is decoded at once, as on a GPU, each picture has its own normalisation."""
    monkeypatch.setattr(BandedDecoder, "_at_once", lambda self, batch: batch)
    z = latents(vae, 6, 5, batch=3) * torch.tensor([0.1, 1, 3]).view(3, 1, 1, 1)
    assert distance(BandedDecoder(vae).decode(z, mode), whole(vae, z)) <= WORST


OTHERS = {
    "one level": ((32,), {}),
    "two levels": ((32, 64), {}),
    "levels of one width": ((32, 32, 32), {}),
    "narrower at the latents": ((64, 32), {}),
    "no attention": ((32, 64), {"mid_block_add_attention": False}),
    "no post_quant_conv": ((32, 64), {"use_post_quant_conv": False}),
    "few groups": ((32, 64), {"norm_num_groups": 4}),
    "one group": ((32, 64), {"norm_num_groups": 1}),
    "a group for each channel": ((16, 16), {"norm_num_groups": 16}),
    "sixteen latent channels": ((32, 64), {"latent_channels": 16}),
    "as deep as Stable Diffusion's": ((32, 32, 64, 64), {"layers_per_block": 2}),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OTHERS)
def test_other_decoders_of_the_same_blocks_are_exact(name: str, mode: Mode) -> None:
    """The structure is read from the VAE: levels, widths, groups, attention, 1 x 1 layers."""
    widths, config = OTHERS[name]
    vae = make_vae(widths, **config)
    z = latents(vae, 9, 6)
    assert distance(BandedDecoder(vae).decode(z, mode), whole(vae, z)) <= WORST


@pytest.mark.parametrize("mode", MODES)
def test_flux2_and_kl_vaes_of_the_families_are_exact(mode: Mode) -> None:
    """The narrow VAEs that the other tests decode with are decoded as they are by diffusers."""
    for vae in (CASES["flux2"].make_vae(), make_kl(), make_kl(16)):
        z = latents(vae, 7, 10)
        assert distance(BandedDecoder(vae).decode(z, mode), whole(vae, z)) <= WORST


@pytest.mark.parametrize("mode", MODES)
def test_wide_layers_are_exact_too(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that are wide enough for Winograd's method give the same picture."""
    from darkroom_worker.banded import convolution

    monkeypatch.setattr(convolution, "WINOGRAD_CHANNELS", 32)
    monkeypatch.setattr(convolution, "WINOGRAD_PIXELS", 1)
    vae = make_vae((32, 64), layers_per_block=2)
    for size in ((1, 1), (5, 3), (11, 9)):
        z = latents(vae, *size)
        assert distance(BandedDecoder(vae).decode(z, mode), whole(vae, z)) <= WORST


@pytest.mark.parametrize("mode", MODES)
def test_large_means_do_not_cancel(mode: Mode) -> None:
    """Where channels have means far above their deviations, the variance is still right."""
    vae = make_vae((32, 64))
    with torch.no_grad():
        vae.decoder.conv_in.bias += 30
        vae.decoder.up_blocks[0].upsamplers[0].conv.bias += 100
    z = latents(vae, 9, 8)
    # The reference is computed in float64: in float32 diffusers' own moments cancel here.
    expected = whole(vae, z)
    exact = whole(vae.double(), z.double())
    decoded = BandedDecoder(vae.float()).decode(z, mode)
    assert distance(decoded, exact) <= max(WORST, 2 * distance(expected, exact))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
def test_half_precision_is_no_further_from_float32(mode: Mode, dtype: torch.dtype) -> None:
    """In half precision the picture is as near to the float32 one as diffusers' own is."""
    vae = make_vae((32, 64, 64), layers_per_block=2)
    z = torch.cat([latents(vae, 12, 16), latents(vae, 16, 12).transpose(2, 3)]).to(dtype)
    half = make_vae((32, 64, 64), layers_per_block=2).to(dtype)
    vae.load_state_dict(half.state_dict())
    expected = whole(vae, z.float())
    decoded = BandedDecoder(half).decode(z, mode)
    assert decoded.dtype == dtype
    assert error(decoded, expected) <= error(whole(half, z), expected)


@pytest.mark.parametrize("mode", MODES)
def test_the_same_latents_give_the_same_bits(vae: Any, mode: Mode) -> None:
    """A decode that runs again, after a worker died, gives the same picture."""
    z = latents(vae, 13, 7)
    first, second = (BandedDecoder(vae).decode(z, mode) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (1, 4, 13, 7), (3, 4, 8, 5)])
def test_steps_are_counted_exactly(vae: Any, shape: tuple[int, ...], mode: Mode) -> None:
    """Progress reaches its end with the last step, neither before nor after."""
    taken: list[None] = []
    decoder = BandedDecoder(vae)
    z = latents(vae, *shape[2:], batch=shape[0])
    decoder.decode(z, mode, lambda: taken.append(None))
    assert len(taken) == decoder.steps(shape, mode) > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_decode_can_be_abandoned_at_any_step(vae: Any, mode: Mode) -> None:
    """What `on_step` raises comes out, and the next decode is as good as ever."""

    class StopError(Exception):
        pass

    decoder = BandedDecoder(vae)
    z = latents(vae, 3, 2)
    expected = decoder.decode(z, mode)
    steps = decoder.steps((1, 4, 3, 2), mode)
    for stop in (0, steps // 2, steps - 1):
        left = iter(range(stop))

        def step(left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise StopError

        with pytest.raises(StopError):
            decoder.decode(z, mode, step)
        assert torch.equal(decoder.decode(z, mode), expected)


def test_the_vae_is_left_as_it_was() -> None:
    """Neither weights nor their layout change, and the VAE decodes and encodes as before."""
    vae = make_vae()
    z = latents(vae, 6, 5)
    before = {name: (value.clone(), value.stride()) for name, value in vae.state_dict().items()}
    expected = whole(vae, z)
    kept = z.clone()
    for mode in MODES:
        BandedDecoder(vae).decode(z, mode)
    after = vae.state_dict()
    assert before.keys() == after.keys()
    for name, (value, stride) in before.items():
        assert torch.equal(after[name], value)
        assert after[name].stride() == stride
    assert torch.equal(whole(vae, z), expected)
    assert torch.equal(z, kept)


def _patched(vae: Any) -> nn.Module:
    block = vae.decoder.up_blocks[0].resnets[0]
    block.forward = lambda x, temb=None: x
    return vae  # type: ignore[no-any-return]


def _with(change: Callable[[Any], object]) -> nn.Module:
    vae = make_vae((32, 64))
    change(vae)
    return vae  # type: ignore[no-any-return]


class OtherNorm(nn.GroupNorm):
    """A GroupNorm that may do anything."""


def _swap_norm(vae: Any) -> None:
    vae.decoder.up_blocks[0].resnets[0].norm1 = OtherNorm(32, 64)


def _swap_activation(vae: Any) -> None:
    vae.decoder.mid_block.resnets[0].nonlinearity = nn.GELU()


def _rescale(vae: Any) -> None:
    vae.decoder.up_blocks[0].resnets[0].output_scale_factor = 2.0


def _stride(vae: Any) -> None:
    vae.decoder.conv_out.padding_mode = "reflect"


def _mix_dtypes(vae: Any) -> None:
    vae.decoder.conv_out.to(torch.float16)


STRANGERS: dict[str, Callable[[], nn.Module]] = {
    "tiny": make_tiny,
    "dc": CASES["sana"].make_vae,
    "asymmetric": lambda: AsymmetricAutoencoderKL(norm_num_groups=4),
    "temporal": lambda: AutoencoderKLTemporalDecoder(block_out_channels=(32,)),
    "spatial norm": lambda: VQModel(block_out_channels=(32,), norm_type="spatial"),
    "audio": lambda: AutoencoderOobleck(8, [2], [1, 2], 8, 4),
    "no vae": lambda: nn.Linear(2, 2),
    "patched block": lambda: _with(_patched),
    "other norm": lambda: _with(_swap_norm),
    "other activation": lambda: _with(_swap_activation),
    "other scale": lambda: _with(_rescale),
    "other padding": lambda: _with(_stride),
    "pre-hook": lambda: _with(
        lambda vae: vae.decoder.conv_in.register_forward_pre_hook(lambda layer, x: None)
    ),
    "mixed dtypes": lambda: _with(_mix_dtypes),
    "training": lambda: _with(lambda vae: vae.train()),
    "float64": lambda: _with(lambda vae: vae.double()),
    "sliced attention": lambda: _with(lambda vae: vae.set_attn_processor(SlicedAttnProcessor(1))),
    "other upsampler": lambda: _with(
        lambda vae: setattr(vae.decoder.up_blocks[0].upsamplers[0], "interpolate", False)
    ),
    "other decode": lambda: _with(lambda vae: setattr(vae, "decode", lambda z: z)),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_unknown_decoders_are_refused(name: str) -> None:
    """A decoder with anything in it that is not known exactly is left to diffusers."""
    stranger = STRANGERS[name]()
    assert not supports(stranger)
    with pytest.raises(ValueError, match="not known"):
        BandedDecoder(stranger)


VIDEO_CASES = [
    name
    for name, case in CASES.items()
    if case.sizes[0].num_frames is not None and name != "hunyuan-video"
]


@pytest.mark.parametrize("name", VIDEO_CASES)
def test_video_vaes_are_refused(name: str) -> None:
    """Decoders of videos have other blocks, all but HunyuanVideo's."""
    assert not supports(CASES[name].make_vae())


def test_known_decoders_are_supported() -> None:
    """The VAEs of Stable Diffusion, SDXL, SD3, FLUX and FLUX.2 are known."""
    assert supports(make_kl())
    assert supports(make_vae(cls=AutoencoderKLFlux2, latent_channels=32))


def peak_bytes(function: Callable[[], object]) -> int:
    """Run a function, and give the most bytes that PyTorch held at once for it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted(
        ((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"),
        key=lambda change: change[0],
    )
    return max(accumulate(size for _, size in changes))


def test_a_convolution_of_a_repeated_map_is_four_of_the_small_one() -> None:
    """The 2 x 2 kernels by parity give what doubling and a 3 x 3 convolution give."""
    torch.manual_seed(0)
    layer, mixing = nn.Conv2d(5, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
    x = torch.randn(2, 5, 4, 7)
    with torch.no_grad():
        doubled = layer(functional.interpolate(x, scale_factor=2.0))
        rows = to_rows(functional.pad(x, (0, 0, 1, 1)))
        made = to_channels_first(ParityKernels.of(layer)(rows))
        mixed = to_channels_first(ParityKernels.of(layer, mixing)(rows))
        assert distance(made, doubled) < 1e-6
        assert distance(mixed, mixing(doubled)) < 1e-6


def test_winograds_matrices_are_exact() -> None:
    """A^T [(G g) * (B^T d)] is the filter's sum, as an identity of numbers without rounding."""
    for tap in range(3):
        for column in range(6):
            for row in range(4):
                found = sum(
                    Fraction(OUTPUTS[row][k]).limit_denominator(1000)
                    * Fraction(FILTERS[k][tap]).limit_denominator(1000)
                    * Fraction(INPUTS[k][column]).limit_denominator(1000)
                    for k in range(6)
                )
                assert found == (column == row + tap)


def test_winograds_rounding_is_that_of_a_convolution() -> None:
    """The error against float64 is of the size of the direct convolution's."""
    torch.manual_seed(0)
    layer = nn.Conv2d(256, 64, 3, padding=(0, 1))
    rows = functional.silu(torch.randn(1, 10, 16, 256))
    with torch.no_grad():
        exact = to_rows(layer.double()(to_channels_first(rows.double())))
        direct = to_rows(layer.float()(to_channels_first(rows)))
        made = WinogradRows(layer.weight[:, :, :, None], layer.bias, _convolve_columns)(rows)
    spread = [(result - exact).square().mean().sqrt() for result in (made, direct)]
    assert spread[0] < 3 * spread[1]


def test_moments_in_bands_are_those_of_the_whole() -> None:
    """GroupNorm over bands is GroupNorm over the map, also far from zero."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 16)
    x = torch.randn(2, 16, 9, 5) + 1000
    moments = Moments()
    for band in to_rows(x).split([1, 5, 3], dim=1):
        moments.add(band)
    with torch.no_grad():
        nn.init.normal_(norm.weight)
        affine = moments.affine(norm)
        made = to_rows(x.double()) * affine.scale + affine.shift
        exact = to_rows(norm.double()(x.double()))
    assert distance(made, exact) < 1e-3  # the mean times the rounding of a scale


@pytest.mark.parametrize("kind", [PlainMap, PackedMap])
def test_maps_give_back_what_was_written(kind: Any) -> None:
    """Rows cross bands; 24 bits keep them to 2^-23 of the largest of a row's channel."""
    torch.manual_seed(0)
    read: list[None] = []
    shape = MapShape(2, 7, 5, 3, band=3)
    stored = kind(shape, lambda: read.append(None))
    x = torch.randn(2, 7, 5, 3) * torch.tensor([1e-20, 1.0, 1e20])
    x[:, 4] = 0
    stored.write(0, x[:, :2])
    stored.write(2, x[:, 2:])
    more = torch.ones(2, 4, 5, 3)
    sums = more.clone()
    stored.add(2, sums)
    expected = x.clone()
    expected[:, 2:6] += more
    assert torch.equal(sums[:, 2], expected[:, 4])
    found = torch.cat(list(stored.read()), 1)
    largest = expected.abs().amax(2, keepdim=True)
    assert ((found - expected).abs() <= largest * 2**-22).all()
    assert len(read) == shape.reads() == 3
    stored.release(5)
    assert torch.equal(torch.cat(list(stored.read(3)), 1), found[:, 3:])
    with pytest.raises(IndexError):
        next(stored.read())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("height", "width", "batch"), [(40, 32, 1), (24, 48, 2)])
def test_memory_is_predicted(
    height: int, width: int, batch: int, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget holds: the peak of all tensors, and the heap, is within 15% of the prediction."""
    vae = make_vae((64, 128, 256, 256))
    decoder = BandedDecoder(vae)
    z = latents(vae, height, width, batch)
    # Pages that PyTorch did not reserve it cannot count.
    monkeypatch.setattr(
        maps, "allocate", lambda like, size, dtype: like.new_empty(size, dtype=dtype)
    )
    # Nor does it know of pages that are reserved and not yet written.
    monkeypatch.setattr(maps, "reserves_ahead", lambda _: False)
    peak = peak_bytes(lambda: decoder.decode(z, mode))
    predicted = decoder.predicted_bytes(tuple(z.shape), mode) - HEAP_BYTES
    assert predicted == pytest.approx(peak, rel=0.15)


def test_modes_take_less_memory_in_their_order(vae: Any) -> None:
    """`small` is predicted to take less than `balanced`, and that less than `fast`."""
    decoder = BandedDecoder(vae)
    fast, balanced, small = (decoder.predicted_bytes((1, 4, 64, 64), mode) for mode in MODES)
    assert small < balanced < fast
