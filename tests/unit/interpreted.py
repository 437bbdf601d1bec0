"""The kernels of the banded decode in Triton's interpreter, which runs them on the CPU.

It has to be chosen before Triton is imported: `test_banded_gpu.py` runs this in a process of its
own, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from darkroom_worker.banded import BandedDecoder, Mode, fused, kernels, plain
from darkroom_worker.banded.layers import DTYPES
from darkroom_worker.banded.layout import to_rows
from darkroom_worker.banded.norm import Moments

from .test_banded import MODES, WORST, distance, error, latents, make_vae, whole
from .test_banded_gpu import as_on_gpu, use

__all__ = ["as_on_gpu"]

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the CPU use the kernels."""
    use(kernels, monkeypatch)


@pytest.mark.parametrize("channels", fused.CHANNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_compute_what_pytorch_does(dtype: torch.dtype, channels: int) -> None:
    """What is compared before their first use on a GPU holds in the interpreter."""
    assert fused.compare(kernels, CPU, dtype, channels) == []


SHAPES = [(1, 1, 1, 1), (1, 1, 1, 3), (2, 3, 5, 7), (3, 1, 300, 2), (1, 9, 1, 160), (2, 2, 130, 48)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_take_any_rows(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Single pixels, odd numbers of channels, several tiles; only the rows asked for change."""
    torch.manual_seed(0)
    batch, height, width, channels = shape
    band = torch.randn(batch, height + 3, width, channels).to(dtype)
    rows = band[:, 1 : 1 + height]
    scale, shift = torch.randn(2, batch, 1, 1, channels)
    outs = [torch.full_like(band, 7.0) for _ in range(2)]
    for out, module in zip(outs, (plain, kernels), strict=True):
        module.activate(rows, scale, shift, out[:, 2 : 2 + height])
    rounding = max(1e-6, torch.finfo(dtype).eps)
    assert torch.allclose(outs[1].float(), outs[0].float(), rtol=rounding, atol=rounding)

    pivot = kernels.choose_pivot(rows)
    exact = plain.sum_deviations(rows.double(), pivot.double())
    made = kernels.sum_deviations(rows, pivot)
    assert made.dtype == torch.float64
    assert torch.allclose(made, exact, rtol=1e-5, atol=1e-5 * height * width)


def test_moments_by_kernels_are_those_of_the_whole() -> None:
    """GroupNorm over bands is GroupNorm over the map, also far from zero, for each picture."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 24)
    x = torch.randn(2, 24, 19, 35) * torch.tensor([1.0, 50.0]).view(2, 1, 1, 1) + 1000
    x = x.contiguous(memory_format=torch.channels_last)
    moments = Moments()
    for band in to_rows(x).split([1, 15, 3], dim=1):
        moments.add(band)
    with torch.no_grad():
        nn.init.normal_(norm.weight)
        affine = moments.affine(norm)
        made = to_rows(x.double()) * affine.scale + affine.shift
        exact = to_rows(norm.double()(x.double()))
    assert distance(made, exact) < 1e-3  # the mean times the rounding of a scale


@pytest.mark.usefixtures("as_on_gpu")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_decode_with_kernels_is_exact(
    dtype: torch.dtype, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels in all places where a GPU would use them give the picture, in each dtype."""
    vae = make_vae((32, 64), layers_per_block=2)
    half = make_vae((32, 64), layers_per_block=2).to(dtype)
    vae.load_state_dict(half.state_dict())
    z = latents(vae, 6, 5, batch=2).to(dtype)
    expected = whole(vae, z.float())
    assert fused.is_used(CPU, dtype)
    monkeypatch.setattr(plain, "activate", _unexpected)
    decoded = BandedDecoder(half).decode(z, mode)
    if dtype == torch.float32:
        assert distance(decoded, expected) <= WORST
    else:
        assert error(decoded, expected) <= error(whole(half, z), expected)


def _unexpected(*_: object) -> None:
    raise AssertionError("plain PyTorch where kernels are right")
