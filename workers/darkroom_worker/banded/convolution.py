"""Convolutions of windows of rows: 3 x 3, and 3 x 3 after doubling rows and columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import winograd
from .borders import ZEROS
from .layers import Convolution
from .layout import to_channels_first, to_rows

WINOGRAD_CHANNELS = 256
"""From so many input channels on the fewer products outweigh the passes that Winograd adds."""

WINOGRAD_PIXELS = 16384
"""From so many pixels on they also outweigh the making of the filters."""


def _convolve_columns(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve rows [B, r, W, C] along their columns, which are padded with zeros."""
    return to_rows(functional.conv2d(to_channels_first(rows), weight, bias, padding=(0, 1)))


class RowConvolution:
    """A 3 x 3 convolution of stride 1 that pads the columns with zeros, but no rows."""

    border = ZEROS

    def __init__(self, layer: nn.Conv2d, pixels: int) -> None:
        self._weight, self._bias = _as_convolved(layer.weight), layer.bias
        self._winograd: winograd.WinogradRows | None = None
        if winograd_pays(layer, pixels):
            self._winograd = winograd.WinogradRows(
                layer.weight[:, :, :, None], bias_of(layer), _convolve_columns
            )

    @property
    def multiple(self) -> int:
        """The number of rows in whose multiples it is fastest."""
        return 1 if self._winograd is None else winograd.ROWS

    def __call__(self, window: Tensor) -> Tensor:
        """Convolve [B, n + 2, W, C] to [B, n, W, O]."""
        rows = window.shape[1] - 2
        if self._winograd is not None and rows % winograd.ROWS == 0:
            return self._winograd(window)
        return to_rows(
            functional.conv2d(to_channels_first(window), self._weight, self._bias, padding=(0, 1))
        )


def _as_convolved(weight: Tensor) -> Tensor:
    """Order weights as a map in `channels_last` is convolved, once instead of in each band."""
    return weight.contiguous(memory_format=torch.channels_last)


def winograd_pays(layer: Convolution, pixels: int) -> bool:
    """Decide for float32 on a CPU: elsewhere there are units for matrices, or little precision."""
    weight = layer.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and layer.in_channels >= WINOGRAD_CHANNELS
        and pixels >= WINOGRAD_PIXELS
    )


def winograd_bytes(layer: Convolution, pixels: int) -> int:
    """Count the bytes of the filters that a convolution of so many pixels makes."""
    return 2 * layer.weight.nbytes if winograd_pays(layer, pixels) else 0


def bias_of(layer: Convolution) -> Tensor:
    """Give a layer's bias, zeros where it has none."""
    return layer.weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias


@dataclass(frozen=True)
class ParityKernels:
    """Doubling rows and columns by repetition, then a 3 x 3 convolution, without the doubled map.

    Of the nine pixels that such a convolution sees, several are repetitions of one: an output in
    an even row sees two rows of the small map, with the weights w0 and w1 + w2, one in an odd row
    w0 + w1 and w2, and the same holds for columns. So each of the four parities of an output's row
    and column has its own 2 x 2 convolution of the small map: 16 products instead of 36.

    `upper` and `lower`, [2 O, C, 2, 2], make the even and the odd rows; their first O channels the
    even, the others the odd columns.
    """

    upper: Tensor
    lower: Tensor
    bias: Tensor
    border = ZEROS

    @classmethod
    def of(cls, layer: nn.Conv2d, then: Convolution | None = None) -> ParityKernels:
        """Make them for a layer, and where there is one for a 1 x 1 convolution after it.

        Sums of weights are taken in float32 and rounded once.
        """
        weight, bias = mixed(layer, then)
        channels, inputs = weight.shape[:2]
        columns = weight.new_empty(2, channels, inputs, 3, 2)
        kernels = layer.weight.new_empty(2, 2, channels, inputs, 2, 2)
        _merge(weight.unbind(3), *columns.unbind(4))
        _merge(columns.unbind(3), *kernels.unbind(4))
        upper, lower = kernels.flatten(1, 2)
        bias = bias.to(layer.weight.dtype).repeat(2)
        return cls(_as_convolved(upper), _as_convolved(lower), bias)

    def __call__(self, window: Tensor) -> Tensor:
        """Turn [B, n + 2, W, C] into [B, 2 n, 2 W, O]: the first and the last row are a margin."""
        batch, height, width, _ = window.shape
        rows, channels = height - 2, len(self.bias) // 2
        doubled = window.new_empty(batch, rows, 2, width, 2, channels)
        for parity, weight in enumerate((self.upper, self.lower)):
            margin = to_channels_first(window[:, parity : parity + rows + 1])
            both = to_rows(functional.conv2d(margin, weight, self.bias, padding=(0, 1)))
            doubled[:, :, parity, :, 0] = both[:, :, :width, :channels]
            doubled[:, :, parity, :, 1] = both[:, :, 1:, channels:]
        return doubled.view(batch, 2 * rows, 2 * width, channels)


def mixed(layer: Convolution, then: Convolution | None) -> tuple[Tensor, Tensor]:
    """Give the weight and the bias, in float32, of a layer and of a 1 x 1 (x 1) one after it."""
    weight, bias = layer.weight.float(), bias_of(layer)
    if then is None:
        return weight, bias
    mixing = then.weight.float().flatten(1)
    weight = torch.einsum("oc,ci...->oi...", mixing, weight)
    return weight, mixing @ bias.float() + bias_of(then).float()


def _merge(weights: tuple[Tensor, ...], first: Tensor, second: Tensor) -> None:
    """Add up those of three neighbouring weights that see the same pixel.

    Args:
        weights: three, of one shape.
        first: what sees the first of two pixels: for even outputs, then for odd ones.
        second: what sees the second.
    """
    before, at, after = weights
    first[0], second[0] = before, at + after
    first[1], second[1] = before + at, after
