"""The decoder of `AutoencoderTiny` in bands: the pictures of `vae.decode`, in less memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from darkroom_worker.banded import BandedDecoder, TinyDecoder, supports, supports_tiny, tiny
from darkroom_worker.footprint import HEAP_BYTES
from tests.vaes import make_kl, make_tiny

from .test_banded import WORST, distance, error, whole
from .test_streamed import tensor_bytes

SIZES = [(1, 1), (1, 9), (9, 1), (2, 3), (5, 7), (13, 40), (40, 13), (33, 31)]


@pytest.fixture(scope="module")
def vae() -> Any:
    """A VAE of a quarter of taesd's width, whose pictures have the usual contrast."""
    made = make_tiny()
    z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in made.decoder.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.normal_(layer.bias, 0, 0.1)
        last: Any = made.decoder.layers[-1]
        last.weight *= 0.5 / whole(made, z).std()
    return made


@pytest.fixture(autouse=True)
def small_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make bands so narrow that small pictures have many."""
    monkeypatch.setattr(tiny, "BAND_PIXELS", 1 << 10)


def latents(height: int, width: int, batch: int = 1) -> Tensor:
    """Make random latents."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randn(batch, 4, height, width, generator=generator)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pictures_are_those_of_a_whole_decode(vae: Any, height: int, width: int) -> None:
    """Odd, tall, wide and tiny pictures are the same to float rounding."""
    z = latents(height, width)
    expected = whole(vae, z)
    decoded = TinyDecoder(vae).decode(z)
    assert decoded.dtype == torch.float32
    assert distance(decoded, expected) <= WORST


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 1000])
def test_the_bands_do_not_show(vae: Any, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of rows of a band, the picture is the same: there are no seams."""
    z = latents(19, 6)
    monkeypatch.setattr(tiny, "BAND_PIXELS", rows * 6 * 64)
    assert distance(TinyDecoder(vae).decode(z), whole(vae, z)) <= WORST


def test_each_picture_of_a_batch_is_decoded(vae: Any) -> None:
    """A batch gives the pictures of its latents, in their order."""
    z = latents(6, 5, batch=3)
    assert distance(TinyDecoder(vae).decode(z), whole(vae, z)) <= WORST


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_float32_as_diffusers(vae: Any, dtype: torch.dtype) -> None:
    """In half precision the error against float32 is not larger than that of diffusers' decode."""
    half = nn.Module.to(make_like(vae), dtype)
    z = latents(24, 17)
    expected = whole(vae, z)
    decoded = TinyDecoder(half).decode(z.to(dtype))
    assert decoded.dtype == dtype
    assert error(decoded, expected) <= 1.05 * error(whole(half, z.to(dtype)), expected)


def make_like(vae: Any) -> Any:
    """Make the same VAE once more."""
    made = AutoencoderTiny.from_config(vae.config).eval()
    made.load_state_dict(vae.state_dict())
    return made


def test_memory_grows_with_the_width_alone(vae: Any) -> None:
    """Twice as high a picture takes its own bytes and its latents' more, and nothing else."""
    decoder = TinyDecoder(vae)
    small, high = latents(64, 8), latents(128, 8)
    results = [decoder.decode(z).nbytes for z in (small, high)]
    low, peak = (tensor_bytes(partial(decoder.decode, z)) for z in (small, high))
    assert peak - low <= results[1] - results[0] + high.nbytes - small.nbytes
    assert tensor_bytes(partial(whole, vae, high)) > 4 * peak


@pytest.mark.parametrize("shape", [(1, 4, 9, 16), (2, 4, 100, 24), (1, 4, 24, 100)])
def test_memory_is_predicted(vae: Any, shape: tuple[int, ...]) -> None:
    """A budget holds: the peak of all tensors is within 15 % of the prediction."""
    decoder, z = TinyDecoder(vae), torch.randn(shape)
    peak = tensor_bytes(partial(decoder.decode, z))
    predicted = decoder.predicted_bytes(shape) - HEAP_BYTES
    assert predicted == pytest.approx(peak, rel=0.15)


def test_a_prediction_computes_nothing(vae: Any) -> None:
    """Memory can be predicted for pictures that would fill any machine."""
    assert TinyDecoder(vae).predicted_bytes((1, 4, 100_000, 100_000)) > 1 << 40


def test_steps_are_counted_and_a_decode_can_be_abandoned_at_any(vae: Any) -> None:
    """As many steps come as were announced; what one raises comes out, and nothing stays behind."""

    class StopError(Exception):
        pass

    decoder, z = TinyDecoder(vae), latents(30, 6, batch=2)
    steps: list[int] = []
    expected = decoder.decode(z, on_step=lambda: steps.append(1))
    announced = decoder.steps(tuple(z.shape))
    assert len(steps) == announced == 2 * math.ceil(30 / (1024 // (64 * 6)))
    for last in (1, announced // 2, announced):
        left = iter(range(last - 1))

        def step(left: Any = left) -> None:
            if next(left, None) is None:
                raise StopError

        with pytest.raises(StopError):
            decoder.decode(z, on_step=step)
    assert torch.equal(decoder.decode(z), expected)


def test_large_float32_pictures_on_a_cpu_are_faster_in_bands(vae: Any) -> None:
    """From 256 x 256 pixels bands are the default; smaller ones keep diffusers' last bit."""
    decoder = TinyDecoder(vae)
    assert decoder.is_faster((1, 4, 32, 32))
    assert not decoder.is_faster((1, 4, 32, 31))
    assert not TinyDecoder(nn.Module.to(make_like(vae), torch.bfloat16)).is_faster((1, 4, 64, 64))


def test_the_vae_is_left_as_it_was(vae: Any) -> None:
    """Neither weights nor their layout change."""
    before = {name: (value.clone(), value.stride()) for name, value in vae.state_dict().items()}
    TinyDecoder(vae).decode(latents(9, 9))
    for name, value in vae.state_dict().items():
        assert torch.equal(value, before[name][0])
        assert value.stride() == before[name][1]


def _other_activation(vae: Any) -> None:
    vae.decoder.layers[2].conv[1] = nn.SiLU()


def _other_doubling(vae: Any) -> None:
    vae.decoder.layers[5] = nn.Upsample(scale_factor=2, mode="bilinear")


def _other_factor(vae: Any) -> None:
    vae.decoder.layers[5] = nn.Upsample(scale_factor=3, mode="nearest")


def _other_skip(vae: Any) -> None:
    vae.decoder.layers[2].skip = nn.Conv2d(16, 16, 1)


def _other_padding(vae: Any) -> None:
    vae.decoder.layers[0].padding_mode = "reflect"


def _patched(vae: Any) -> None:
    vae.decoder.layers[0].forward = lambda x: x


def _tiles(vae: Any) -> None:
    vae.enable_tiling()


def _another_layer(vae: Any) -> None:
    vae.decoder.layers.append(nn.Sigmoid())


@pytest.mark.parametrize(
    "change",
    [
        _other_activation,
        _other_doubling,
        _other_factor,
        _other_skip,
        _other_padding,
        _patched,
        _tiles,
        _another_layer,
    ],
)
def test_unknown_decoders_are_refused(change: Callable[[Any], None]) -> None:
    """What is not known layer by layer is left to diffusers."""
    vae = make_tiny()
    assert supports_tiny(vae)
    change(vae)
    assert not supports_tiny(vae)
    with pytest.raises(ValueError, match="not known"):
        TinyDecoder(vae)


def test_each_decoder_knows_its_own_classes() -> None:
    """A VAE has one way to be decoded exactly in pieces."""
    assert not supports_tiny(make_kl())
    assert not supports(make_tiny())
    with pytest.raises(ValueError, match="AutoencoderTiny"):
        BandedDecoder(make_tiny())
