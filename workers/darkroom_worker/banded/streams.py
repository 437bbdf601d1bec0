"""Layers over streams of rows: each takes an iterator of bands from the top and is one itself.

Bands are [B, r, W, C] with any number of rows; what a stream yields is valid until its next band.
A 3 x 3 convolution sees one row ahead and one behind: it keeps those between bands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from .convolution import ParityKernels, RowConvolution
from .norm import Affine, Moments

Rows = Iterator[Tensor]


def convolve(rows: Rows, convolution: RowConvolution, affine: Affine, *, top: bool = True) -> Rows:
    """Convolve SiLU(x * scale + shift), zero outside of the map.

    Args:
        rows: x from the map's first row to its last; without `top` from some other row on.
        convolution: 3 x 3, from C to O channels.
        affine: the normalisation before the activation.
        top: whether `rows` begin with the map's first row. Else their first row only is above the
            first that comes out.
    """
    for window in _windows(rows, affine.activate, convolution.multiple, top=top):
        yield convolution(window)


def upsample(rows: Rows, kernels: ParityKernels, *, top: bool = True) -> Rows:
    """Double rows and columns by repetition, and convolve 3 x 3: twice as many rows come out.

    `rows` and `top` are as in `convolve`.
    """
    for window in _windows(rows, _copy, 1, top=top):
        yield kernels(window)


def measure(rows: Rows, moments: Moments) -> Rows:
    """Count rows into `moments` as they pass."""
    for band in rows:
        moments.add(band)
        yield band


def skip(rows: Rows, count: int) -> Rows:
    """Leave out the first rows of a stream."""
    for band in rows:
        if band.shape[1] > count:
            yield band[:, count:]
        count = max(0, count - band.shape[1])


def split(rows: Rows, most: int) -> Rows:
    """Cut bands into such of at most so many rows."""
    for band in rows:
        for start in range(0, band.shape[1], most):
            yield band[:, start : start + most]


class Taker:
    """Takes rows from a stream in other numbers than it yields them."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._band: Tensor | None = None
        self._used = 0

    def take(self, count: int) -> Iterator[Tensor]:
        """Yield the next `count` rows in pieces.

        Raises:
            StopIteration: the stream has fewer.
        """
        while count:
            if self._band is None or self._used == self._band.shape[1]:
                self._band, self._used = next(self._rows), 0
            piece = self._band[:, self._used : self._used + count]
            self._used += piece.shape[1]
            count -= piece.shape[1]
            yield piece


def _copy(rows: Tensor, out: Tensor) -> None:
    out.copy_(rows)


def _windows(
    rows: Rows, fill: Callable[[Tensor, Tensor], None], multiple: int, *, top: bool
) -> Rows:
    """Yield windows [B, n + 2, W, C] of a stream: n rows of a multiple, and one on either side.

    Zeros are above the map's first row and below its last. The number of rows is a multiple of
    `multiple` but for the last window.
    """
    buffer: Tensor | None = None
    held = 0
    for band in rows:
        if buffer is None:
            buffer = _with_room(band, band.shape[1] + multiple + 2)
            if top:
                buffer[:, :1].zero_()
                held = 1
        elif buffer.shape[1] < held + band.shape[1] + 1:
            buffer, smaller = _with_room(band, held + band.shape[1] + 1), buffer
            buffer[:, :held].copy_(smaller[:, :held])
        fill(band, buffer[:, held : held + band.shape[1]])
        held += band.shape[1]
        if whole := max(0, held - 2) // multiple * multiple:
            yield buffer[:, : whole + 2]
            held -= whole
            buffer[:, :held].copy_(buffer[:, whole : whole + held].clone())
    if buffer is not None and held > 1:
        buffer[:, held : held + 1].zero_()
        yield buffer[:, : held + 1]


def _with_room(band: Tensor, rows: int) -> Tensor:
    batch, _, width, channels = band.shape
    return band.new_empty(batch, rows, width, channels)
