"""A ResNet block over a map that streams: shortcut(x) + conv2(SiLU(norm2(conv1(SiLU(norm1(x)))))).

Two things are global: the moments of x and of h = conv1(…). So x streams twice, once for the
moments of h and once for the result. Of h as many of the first rows are kept as memory allows, the
others are computed again in the second pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from itertools import chain

from torch import Tensor, nn
from torch.nn import functional

from .borders import Repeated
from .convolution import ParityKernels, RowConvolution
from .layers import Block, Convolution
from .layout import to_channels_first, to_rows
from .maps import AnyMap, MapShape
from .norm import Moments
from .streams import (
    AnyConvolution,
    AnyParityKernels,
    Rows,
    Taker,
    convolve,
    measure,
    skip,
    split,
    upsample,
)
from .volumes import VolumeConvolution, VolumeParityKernels


class Source(ABC):
    """Where the rows of a block's input x come from, as often as they are needed."""

    @property
    @abstractmethod
    def moments(self) -> Moments:
        """The moments of x."""

    @abstractmethod
    def rows(self, start: int = 0) -> Rows:
        """Stream x, [B, r, W, C], from the row `start` on."""

    @abstractmethod
    def shortcut(self, layer: Convolution | None) -> Rows:
        """Stream the rows of the shortcut: x, or its 1 x 1 convolution."""

    @abstractmethod
    def release(self, before: int) -> None:
        """Say that the rows above `before` are not needed any more."""


class Stored(Source):
    """A map that is there."""

    def __init__(self, stored: AnyMap, moments: Moments) -> None:
        self.map = stored
        self._moments = moments

    @property
    def moments(self) -> Moments:
        """The moments of x."""
        return self._moments

    def rows(self, start: int = 0) -> Rows:
        """Stream x from the row `start` on."""
        return self.map.read(start)

    def shortcut(self, layer: Convolution | None) -> Rows:
        """Stream x, or its 1 x 1 convolution."""
        for band in self.rows():
            yield band if layer is None else _mix(band, layer)

    def release(self, before: int) -> None:
        """Free the bands above a row."""
        self.map.release(before)


class Upsampled(Source):
    """A map that never is there: the small map before it is upsampled whenever rows are needed.

    `layer` is the convolution after the doubling of rows and columns, and of frames where it
    `doubles_frames`. The first `keep` rows are put into `kept`, an empty map, when the moments are
    taken, and are there for the next that reads from the top; then they are gone.
    """

    def __init__(
        self,
        small: AnyMap,
        layer: Convolution,
        kept: AnyMap,
        keep: int,
        *,
        doubles_frames: bool = False,
    ) -> None:
        self._small = small
        self._layer = layer
        self._doubles_frames = doubles_frames
        self._kernels = self._merge(None)
        self._kept = kept
        self._keep = keep

    @cached_property
    def moments(self) -> Moments:
        """The moments of x."""
        moments, row = Moments(), 0
        for band in self._upsample(self._kernels, 0):
            moments.add(band)
            if row < self._keep:
                self._kept.write(row, band[:, : self._keep - row])
            row += band.shape[1]
        return moments

    def store(self, into: AnyMap) -> Stored:
        """Keep x after all, in an empty map, and let go of the small one."""
        moments, row = Moments(), 0
        for band in measure(self._upsample(self._kernels, 0), moments):
            into.write(row, band)
            row += band.shape[1]
            self.release(row)
        return Stored(into, moments)

    def rows(self, start: int = 0) -> Rows:
        """Give x from the row `start` on: what is kept of it, the rest computed."""
        if start == 0 and self._keep:
            keep, self._keep = self._keep, 0
            yield from self._use_up(keep)
            start = keep
        if start < 2 * self._small.shape.height:
            yield from self._upsample(self._kernels, start)

    def shortcut(self, layer: Convolution | None) -> Rows:
        """Compute x, or its 1 x 1 convolution: with the upsampling it is one convolution."""
        kernels = self._kernels if layer is None else self._merge(layer)
        return self._upsample(kernels, 0)

    def release(self, before: int) -> None:
        """Free the small map's bands that no row from `before` on is computed from."""
        height = self._small.shape.height
        self._small.release(height if before >= 2 * height else max(0, before // 2 - 1))

    def _use_up(self, keep: int) -> Rows:
        """Give the rows that are kept, and free each when the next is asked for."""
        row = 0
        for band in self._kept.read(0, keep):
            yield band
            row += band.shape[1]
            self._kept.release(self._kept.shape.height if row == keep else row)

    def _merge(self, then: Convolution | None) -> AnyParityKernels:
        """Merge the doubling, the convolution and a 1 x 1 (x 1) one after it."""
        if isinstance(self._layer, nn.Conv2d):
            return ParityKernels.of(self._layer, then)
        frames = self._small.shape.frames
        return VolumeParityKernels.of(
            self._layer, then, frames, doubles_frames=self._doubles_frames
        )

    def _upsample(self, kernels: AnyParityKernels, start: int) -> Rows:
        first = start // 2
        margin, shape = max(0, first - 1), self._small.shape
        # A quarter of a band becomes as large as a whole one.
        small = split(self._small.read(margin), max(1, shape.band // 4))
        doubled = upsample(small, kernels, shape.height - margin, top=first == 0)
        return skip(doubled, start % 2)


def convolution(layer: Convolution, shape: MapShape) -> AnyConvolution:
    """Make the convolution of maps of a size by a layer."""
    if isinstance(layer, nn.Conv2d):
        return RowConvolution(layer, shape.pixels)
    return VolumeConvolution(layer, shape.pixels, Repeated(shape.frames, before=2))


def resnet(x: Source, block: Block, kept: AnyMap, keep: int) -> Stored:
    """Apply a block.

    Args:
        x: its input. Is used up: a stored one is overwritten or freed.
        block: with its weights.
        kept: an empty map of the block's output: room for h, and then for the result.
        keep: how many of the first rows of h to keep.

    Returns:
        The result. It lies in x where x is stored and the shortcut is x itself, else in `kept`.
    """
    height = kept.shape.height
    first = convolution(block.conv1, kept.shape)
    normalize = x.moments.affine(block.norm1)
    moments = Moments()
    row = 0
    for h in measure(convolve(x.rows(), first, normalize.activate, height), moments):
        if row < keep:
            kept.write(row, h[:, : keep - row])
        row += h.shape[1]

    h_rows = kept.read(0, keep)
    if keep < height:
        start = max(0, keep - 1)
        rest = convolve(x.rows(start), first, normalize.activate, height - start, top=keep == 0)
        h_rows = chain(h_rows, rest)
    del first  # with its filters, where they are not needed again
    second = convolution(block.conv2, kept.shape)
    residual = convolve(h_rows, second, moments.affine(block.norm2).activate, height)
    if isinstance(x, Stored) and block.conv_shortcut is None:
        return _add_in_place(x.map, residual)
    return _add_shortcut(x, block.conv_shortcut, residual, kept)


def _add_in_place(x: AnyMap, residual: Rows) -> Stored:
    """Add to x. The stream that reads it is always at least a row ahead of what is written."""
    moments, row = Moments(), 0
    for band in residual:
        x.add(row, band)
        moments.add(band)
        row += band.shape[1]
    return Stored(x, moments)


def _add_shortcut(x: Source, layer: Convolution | None, residual: Rows, out: AnyMap) -> Stored:
    """Write shortcut(x) + residual over h, whose rows have been read, and let go of x's."""
    moments, row = Moments(), 0
    shortcut = Taker(x.shortcut(layer))
    for band in residual:
        shortcut.add_to(band)
        out.write(row, band)
        moments.add(band)
        row += band.shape[1]
        x.release(row)
    return Stored(out, moments)


def _mix(rows: Tensor, layer: Convolution) -> Tensor:
    weight = layer.weight.flatten(1)[:, :, None, None]
    return to_rows(functional.conv2d(to_channels_first(rows), weight, layer.bias))
