"""Convolutions of videos, as rows of all frames: 3 x 3 x 3, also after a doubling.

A convolution sees, beside a pixel's own frame, only the two before it: it is causal. In float32 it
is the sum of one along frames and columns for each of its rows: of as few rows as a band has
PyTorch's `conv3d` on a CPU would copy each pixel 27 times, and take twice as long. In half
precision those would be rounded one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import winograd
from .borders import Blank, FrameBorder, Repeated, split_frames
from .convolution import bias_of, mixed, winograd_pays
from .layers import Convolution

Seen = tuple[tuple[int, ...], ...]
"""For each pixel that is seen along an axis, the taps that see it."""

HALVES: Final[tuple[Seen, Seen]] = (((0,), (1, 2)), ((0, 1), (2,)))
"""After a doubling: even outputs see a pixel once and the next twice, odd ones twice and once."""

THIRDS: Final[Seen] = ((0,), (1,), (2,))
"""Without one each tap sees its own."""


class VolumeConvolution:
    """A causal 3 x 3 x 3 convolution of stride 1 whose windows bring what is outside."""

    def __init__(self, layer: nn.Conv3d, pixels: int, border: FrameBorder) -> None:
        self.border = border
        self._kernels, self._bias = _kernels(layer.weight), layer.bias
        self._winograd: winograd.WinogradRows | None = None
        if winograd_pays(layer, pixels):
            self._winograd = winograd.WinogradRows(
                layer.weight.transpose(2, 3), bias_of(layer), partial(_convolve_frames, self.border)
            )

    @property
    def multiple(self) -> int:
        """The number of rows in whose multiples it is fastest."""
        return 1 if self._winograd is None else winograd.ROWS

    def __call__(self, window: Tensor) -> Tensor:
        """Convolve [B, n + 2, (T + 2) (W + 2), C] to [B, n, T W, O]."""
        rows = window.shape[1] - 2
        if self._winograd is not None and rows % winograd.ROWS == 0:
            return self._winograd(window)
        volume = self.border.unfold(window)
        return _convolve(volume, self._kernels, self._bias).flatten(2, 3)


def _convolve_frames(
    border: FrameBorder, rows: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Convolve the frames and columns of each row of a window by itself, 3 x 3."""
    return _convolve(border.unfold(rows), (weight,), bias).flatten(2, 3)


@dataclass(frozen=True)
class VolumeParityKernels:
    """`ParityKernels` for videos; where frames are doubled, all but the first, for those too.

    The second of two equal frames sees, besides them, the one before; the first sees both of the
    frame before. So each has its own two weights along time. With two taps each way a doubling
    takes 64 products instead of 216, without one of frames 48 instead of 108.

    `upper` and `lower` make the even and the odd rows: for each parity of a frame and a column O
    channels.
    """

    upper: tuple[Tensor, ...]
    lower: tuple[Tensor, ...]
    bias: Tensor
    border: FrameBorder
    doubles_frames: bool

    @classmethod
    def of(
        cls, layer: nn.Conv3d, then: Convolution | None, frames: int, *, doubles_frames: bool
    ) -> VolumeParityKernels:
        """Make them for a layer after a doubling of so many frames, and a 1 x 1 x 1 one after it.

        Sums of weights are taken in float32 and rounded once.
        """
        weight, bias = mixed(layer, then)
        dtype = layer.weight.dtype
        taps = weight.permute(3, 2, 4, 0, 1).contiguous()  # rows, frames, columns, [O, C]
        times = HALVES if doubles_frames else (THIRDS,)
        upper, lower = (_merge(taps, rows, times, dtype) for rows in HALVES)
        border = Repeated(frames, before=1 if doubles_frames else 2)
        return cls(upper, lower, bias.to(dtype).repeat(2 * len(times)), border, doubles_frames)

    @classmethod
    def of_frames(cls, layer: nn.Conv2d, frames: int) -> VolumeParityKernels:
        """Make them for a layer that sees each of so many doubled frames by itself, 3 x 3."""
        taps = layer.weight.float().permute(2, 3, 0, 1).unsqueeze(1).contiguous()
        dtype, alone = layer.weight.dtype, (((0,),),)
        upper, lower = (_merge(taps, rows, alone, dtype) for rows in HALVES)
        border = Blank(frames, before=0)
        return cls(upper, lower, bias_of(layer).repeat(2), border, doubles_frames=False)

    def __call__(self, window: Tensor) -> Tensor:
        """Turn [B, n + 2, …, C] into [B, 2 n, T' 2 W, O]: first and last row are a margin."""
        volume = self.border.unfold(window)
        batch, height, _, width, _ = volume.shape
        rows, columns, frames = height - 2, width - 2, self.border.frames
        kinds = 4 if self.doubles_frames else 2
        channels = len(self.bias) // kinds
        count = 2 * frames - 1 if self.doubles_frames else frames
        doubled = window.new_empty(batch, rows, 2, count, columns, 2, channels)
        for parity, kernels in enumerate((self.upper, self.lower)):
            made = _convolve(volume[:, parity : parity + rows + 1], kernels, self.bias)
            for kind, part in enumerate(torch.split(made, channels, -1)):
                time, column = divmod(kind, 2)
                part_of_columns = part[:, :, :, column : column + columns]
                out = doubled[:, :, parity, :, :, column]
                if not self.doubles_frames:
                    out.copy_(part_of_columns)
                elif time == 0:
                    out[:, :, ::2] = part_of_columns
                else:  # the first of two equal frames; the first of all comes only once
                    out[:, :, 1::2] = part_of_columns[:, :, 1:]
        return doubled.view(batch, 2 * rows, count * 2 * columns, channels)


class FrameDoubling:
    """A causal convolution of frames alone that makes two of each, but leaves the first as it is.

    The first sees none of the others, and is seen by none: before the second there were zeros.
    """

    def __init__(self, layer: nn.Conv3d, frames: int) -> None:
        self._kernels, self._bias, self._frames = _kernels(layer.weight), layer.bias, frames

    def __call__(self, rows: Tensor) -> Tensor:
        """Turn [1, r, T W, C] into [1, r, (2 T - 1) W, C]."""
        volume = split_frames(rows, self._frames)
        _, height, frames, width, channels = volume.shape
        if frames == 1:
            return rows
        before = volume.new_zeros(1, height, 2, width, channels)
        made = _convolve(torch.cat((before, volume[:, :, 1:]), 2), self._kernels, self._bias)
        doubled = volume.new_empty(1, height, 2 * frames - 1, width, channels)
        doubled[:, :, 0] = volume[:, :, 0]
        doubled[:, :, 1::2], doubled[:, :, 2::2] = torch.split(made, channels, -1)
        return doubled.flatten(2, 3)


def enter(z: Tensor, layer: nn.Conv3d) -> Tensor:
    """Convolve a whole video, [B, C, T, h, w], causally, into rows [B, h, T w, O]."""
    padded = functional.pad(z, (1, 1, 1, 1, 2, 0), mode="replicate").permute(0, 3, 2, 4, 1)
    return _convolve(padded, _kernels(layer.weight), layer.bias).flatten(2, 3)


def leave(rows: Tensor, frames: int) -> Tensor:
    """See rows [B, r, T W, C] as [B, C, T, r, W]."""
    return split_frames(rows, frames).permute(0, 4, 2, 1, 3)


def by_frames(rows: Tensor, frames: int) -> Tensor:
    """Copy rows [B, h, T w, C] into frames [B, T, h w, C]."""
    return split_frames(rows, frames).transpose(1, 2).flatten(2, 3)


def by_rows(pixels: Tensor, height: int) -> Tensor:
    """Copy frames [B, T, h w, C] into rows [B, h, T w, C]."""
    return split_frames(pixels, height).transpose(1, 2).flatten(2, 3)


def _kernels(weight: Tensor) -> tuple[Tensor, ...]:
    """Order weights [O, C, t, y, x] as they are convolved.

    In float32 those of each row, [O, C, t, x]; else all, [O, C, y, t, x].
    """
    if weight.dtype != torch.float32:
        return (weight.transpose(2, 3).contiguous(memory_format=torch.channels_last_3d),)
    memory = torch.channels_last
    return tuple(part.contiguous(memory_format=memory) for part in weight.unbind(3))


def _convolve(volume: Tensor, kernels: tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
    """Convolve one video's rows, [1, r, T, W, C], to [1, n, T', W', O]."""
    if kernels[0].ndim == 5:
        made = functional.conv3d(volume.permute(0, 4, 1, 2, 3), kernels[0], bias)
        return made.permute(0, 2, 3, 4, 1)
    count = volume.shape[1] - len(kernels) + 1
    planes = volume[0].permute(0, 3, 1, 2)
    made = functional.conv2d(planes[:count], kernels[0], bias)
    for row, kernel in enumerate(kernels[1:], start=1):
        made += functional.conv2d(planes[row : row + count], kernel)
    return made.permute(0, 2, 3, 1)[None]


def _merge(
    taps: Tensor, rows: Seen, times: tuple[Seen, ...], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Add up the weights, [3, 3, 3, O, C], that see the same pixel of the small map.

    Args:
        taps: of rows, frames and columns.
        rows: which rows of weights see which row, for the outputs' rows of one parity.
        times: the same of frames, for each of their parities.
        dtype: in which sums are rounded.

    Returns:
        Kernels as `_kernels` orders them: outputs by the parity of their frame and column.
    """
    *_, channels, inputs = taps.shape
    kinds = [(time, columns) for time in times for columns in HALVES]
    size = (len(rows), len(kinds) * channels, len(times[0]), 2, inputs)
    merged = taps.new_empty(size, dtype=dtype)
    for (row, seen), (kind, (time, columns)) in product(enumerate(rows), enumerate(kinds)):
        out = merged[row, kind * channels : (kind + 1) * channels]
        for (frame, frames), (column, both) in product(enumerate(time), enumerate(columns)):
            places = product(seen, frames, both)
            out[:, frame, column] = sum(taps[place] for place in places)
    kernels = merged.permute(0, 1, 4, 2, 3)
    if dtype == torch.float32:
        return tuple(kernels.unbind(0))
    memory = torch.channels_last_3d
    return (kernels.permute(1, 2, 0, 3, 4).contiguous(memory_format=memory),)
