"""The decoder of `AutoencoderTiny`, in bands of rows that pass through all its layers at once.

It has convolutions, ReLUs and doublings of rows and columns, and nothing that sees the picture as a
whole. So a band of latent rows can become rows of the picture before the next one is begun: each
convolution keeps the two rows with which its next window begins, each block the few rows of its
input that its output has not come to yet. Beyond the pictures, memory grows with their width alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, Final

import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock, DecoderTiny
from torch import Tensor, nn

from darkroom_worker.footprint import held_in_pieces, hollow

from . import devices
from .convolution import ParityKernels, RowConvolution
from .decoder import EXACT_BANDED, nothing
from .layers import in_one_place, is_convolution, is_patched
from .layout import to_channels_first, to_rows
from .memory import Mode
from .streams import Rows, Scratch, add, convolve, copy, fork, split, upsample

FASTER_PIXELS = 1 << 16
"""From so many pixels on a CPU decodes faster in bands; smaller pictures take it a moment."""

BAND_PIXELS = 1 << 15
"""About so many pixels of the picture a band makes, in whole rows of latents.

For 64 channels in float32 its largest maps have 8 MiB. Half of that takes 10 % longer, twice as
much up to 4 % less time.
"""

STEADY_ROWS = 24
"""After so many rows of latents each layer keeps all that it will ever keep."""

Shape = tuple[int, ...]


def supports(vae: Any) -> bool:
    """Tell whether a VAE is one of these, and decodes as its class does, in one piece."""
    if type(vae) is not AutoencoderTiny:
        return False
    decoder: Any = vae.decoder
    parts = list(decoder.modules())
    return (
        type(decoder) is DecoderTiny
        and not any(is_patched(part) or part.training for part in parts)
        and "decode" not in vars(vae)
        and not vae.use_tiling
        and not vae.use_slicing
        and all(map(_is_known, decoder.layers))
        and is_convolution(decoder.layers[0], 3)
        and is_convolution(decoder.layers[-1], 3)
        and in_one_place(parts)
    )


class TinyDecoder:
    """Decodes as `AutoencoderTiny` does, to float rounding."""

    method: Final = EXACT_BANDED

    def __init__(self, vae: Any) -> None:
        """Take a VAE.

        Raises:
            ValueError: its decoder is not known layer by layer.
        """
        if not supports(vae):
            raise ValueError(f"the decoder of this {type(vae).__name__} is not known here")
        self._vae = vae
        self._layers: list[nn.Module] = list(vae.decoder.layers)
        self._factor = 1 << sum(isinstance(layer, nn.Upsample) for layer in self._layers)
        weight: Tensor = self._layers[0].weight  # type: ignore[assignment]
        self._dtype, self._kind = weight.dtype, devices.kind(weight.device)
        self._most: Callable[[Shape], int] = lru_cache(256)(self._count_most)

    def modes(self, shape: Shape) -> tuple[Mode, ...]:
        """Name the modes that differ: there is one."""
        del shape
        return (Mode.FAST,)

    def applies(self, shape: Shape) -> bool:
        """Tell whether latents of a shape are decoded so: always."""
        del shape
        return True

    def is_faster(self, shape: Shape) -> bool:
        """Tell whether latents of a shape decode faster in bands than in one piece."""
        at_home = self._kind == "cpu" and self._dtype is torch.float32
        return at_home and math.prod(shape[2:]) * self._factor**2 >= FASTER_PIXELS

    @torch.inference_mode()
    def decode(
        self, z: Tensor, mode: Mode = Mode.FAST, on_step: Callable[[], None] = nothing
    ) -> Tensor:
        """Decode latents as `vae.decode` takes them; on a CPU one picture after the other.

        Args:
            z: [B, C, h, w], in the dtype and on the device of the weights.
            mode: has no effect: the least memory is that of the fastest way.
            on_step: called before each band. What it raises ends the decode.

        Returns:
            Pictures [B, 3, f h, f w], where f is 8 for taesd.
        """
        del mode
        pictures = z.new_empty(self._result(tuple(z.shape)))
        at_once = self._at_once(len(z))
        for part, out in zip(torch.split(z, at_once), torch.split(pictures, at_once), strict=True):
            row = 0
            for band in self._stream(part, on_step):
                out[:, :, row : row + band.shape[1]] = to_channels_first(band)
                row += band.shape[1]
        return pictures

    def steps(self, shape: Shape, mode: Mode = Mode.FAST) -> int:
        """Count how many times `on_step` will be called for latents of a shape [B, C, h, w]."""
        del mode
        parts = shape[0] // self._at_once(shape[0])
        return parts * math.ceil(shape[2] / self._rows(shape[3]))

    def predicted_bytes(self, shape: Shape, mode: Mode = Mode.FAST) -> int:
        """Predict the peak of memory beyond the weights for latents [B, C, h, w].

        The pictures are counted in, the latents are not.
        """
        del mode
        batch, channels, height, width = shape
        few = (self._at_once(batch), channels, min(height, self._rows(width) + STEADY_ROWS), width)
        more = math.prod(self._result(shape)) - math.prod(self._result(few))
        return self._most(few) + more * self._dtype.itemsize

    def _at_once(self, batch: int) -> int:
        return 1 if self._kind == "cpu" else batch

    def _rows(self, width: int) -> int:
        """Choose how many rows of latents a band has."""
        return max(1, BAND_PIXELS // (self._factor**2 * width))

    def _result(self, shape: Shape) -> Shape:
        batch, _, height, width = shape
        channels: int = self._vae.config.out_channels
        return (batch, channels, height * self._factor, width * self._factor)

    def _stream(self, z: Tensor, on_step: Callable[[], None]) -> Rows:
        """Decode latents [B, C, h, w] to bands [B, r, f w, 3], from the top."""
        height, pixels = z.shape[2], math.prod(z.shape[2:])
        rows, scratch = self._enter(z, on_step), Scratch()
        most = self._rows(z.shape[3])
        layers = iter(self._layers)
        for layer in layers:
            if isinstance(layer, AutoencoderTinyBlock):
                rows = _block(rows, layer, height, pixels, scratch)
            elif isinstance(layer, nn.Upsample):
                doubled: nn.Conv2d = next(layers)  # type: ignore[assignment]
                # The last band brings all rows that layers have kept: too many at once.
                rows = split(rows, most)
                rows = upsample(rows, ParityKernels.of(doubled), height, scratch)
                height, pixels, most = 2 * height, 4 * pixels, 2 * most
            elif isinstance(layer, nn.Conv2d):
                rows = convolve(rows, RowConvolution(layer, pixels), copy, height, scratch)
            else:
                rows = map(Tensor.relu_, rows)
        return map(_from_unit, rows)

    def _enter(self, z: Tensor, on_step: Callable[[], None]) -> Rows:
        for band in torch.split(z, self._rows(z.shape[3]), dim=2):
            on_step()
            yield to_rows(torch.tanh(band / 3) * 3)

    def _count_most(self, shape: Shape) -> int:
        return held_in_pieces(self._hollow.decode, shape, self._dtype, self._kind)

    @cached_property
    def _hollow(self) -> TinyDecoder:
        return TinyDecoder(hollow(self._vae))


def _block(
    rows: Rows, block: AutoencoderTinyBlock, count: int, pixels: int, scratch: Scratch
) -> Rows:
    """Give ReLU(conv(ReLU(conv(ReLU(conv(x))))) + x), of a map of so many rows and pixels."""
    first, second, third = (RowConvolution(block.conv[index], pixels) for index in (0, 2, 4))
    rows, beside = fork(rows)
    made = convolve(rows, first, copy, count, scratch)
    made = convolve(made, second, _rectify, count, scratch)
    made = convolve(made, third, _rectify, count, scratch)
    return map(Tensor.relu_, add(made, beside))


def _rectify(rows: Tensor, out: Tensor) -> None:
    """Write ReLU(rows)."""
    torch.clamp_min(rows, 0, out=out)


def _from_unit(band: Tensor) -> Tensor:
    """Bring [0, 1] to [-1, 1]."""
    return band.mul_(2).sub_(1)


def _is_known(layer: Any) -> bool:
    return (
        is_convolution(layer, 3)
        or type(layer) is nn.ReLU
        or (type(layer) is nn.Upsample and layer.scale_factor == 2 and layer.mode == "nearest")
        or (
            type(layer) is AutoencoderTinyBlock
            and [type(part) for part in layer.conv] == [nn.Conv2d, nn.ReLU] * 2 + [nn.Conv2d]
            and all(is_convolution(part, 3) for part in layer.conv[::2])
            and type(layer.skip) is nn.Identity
            and type(layer.fuse) is nn.ReLU
        )
    )
