"""Layers over streams of rows: each takes an iterator of bands from the top and is one itself.

Bands are [B, r, W, C] with any number of rows; what a stream yields is valid until its next band.
A 3 x 3 convolution sees one row ahead and one behind: it keeps those between bands. A video's rows
are those of all its frames, W = frames x columns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from torch import Tensor

from . import devices
from .borders import Border, Write
from .convolution import ParityKernels, RowConvolution
from .norm import Moments
from .volumes import VolumeConvolution, VolumeParityKernels

Rows = Iterator[Tensor]
AnyConvolution = RowConvolution | VolumeConvolution
AnyParityKernels = ParityKernels | VolumeParityKernels


def convolve(
    rows: Rows,
    convolution: AnyConvolution,
    write: Write,
    count: int,
    scratch: Scratch | None = None,
    *,
    top: bool = True,
) -> Rows:
    """Convolve a map after its activation, with the convolution's border around the map.

    Args:
        rows: the map from its first row to its last; without `top` from some other row on.
        convolution: 3 x 3 (x 3), from C to O channels.
        write: writes rows of the map as the convolution is to see them: normalised, activated.
        count: the number of rows that `rows` has.
        scratch: shared by a chain of convolutions that work by turns.
        top: whether `rows` begin with the map's first row. Else their first row only is above the
            first that comes out.
    """
    border, multiple = convolution.border, convolution.multiple
    for window in _windows(rows, border, write, multiple, count, scratch, top=top):
        yield convolution(window)


def upsample(
    rows: Rows,
    kernels: AnyParityKernels,
    count: int,
    scratch: Scratch | None = None,
    *,
    top: bool = True,
) -> Rows:
    """Double rows and columns by repetition, and convolve: twice as many rows come out.

    `rows`, `count`, `scratch` and `top` are as in `convolve`.
    """
    for window in _windows(rows, kernels.border, copy, 1, count, scratch, top=top):
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


def fork(rows: Rows) -> tuple[Rows, Rows]:
    """Let a stream go two ways, of which the second is never ahead: bands wait for it.

    `itertools.tee` would hold on to bands that both have passed, dozens at a time.
    """
    waiting: deque[Tensor] = deque()

    def wait(band: Tensor) -> Tensor:
        waiting.append(band)
        return band

    return map(wait, rows), iter(waiting.popleft, None)


def add(rows: Rows, others: Rows) -> Rows:
    """Add to each row, in place, one of another stream, which may come in other bands."""
    taker = Taker(others)

    def add_next(band: Tensor) -> Tensor:
        taker.add_to(band)
        return band

    return map(add_next, rows)


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

    def add_to(self, band: Tensor) -> None:
        """Add the next rows to those of a band, one to each."""
        done = 0
        for piece in self.take(band.shape[1]):
            band[:, done : done + piece.shape[1]].add_(piece)
            done += piece.shape[1]


class Scratch:
    """Memory for one window at a time: its rows are read before anything else is written there."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def window(self, like: Tensor, rows: int, width: int) -> Tensor:
        """Give room for rows of a width, [B, rows, width, C], with the rest as in `like`."""
        batch, _, _, channels = like.shape
        size = rows * batch * width * channels
        if self._memory is None or self._memory.numel() < size:
            self._memory = None  # before there are two
            self._memory = like.new_empty(size)
        return self._memory[:size].view(batch, rows, width, channels)


def copy(rows: Tensor, out: Tensor) -> None:
    """Write rows as they are."""
    out.copy_(rows)


def _windows(
    rows: Rows,
    border: Border,
    write: Write,
    multiple: int,
    count: int,
    scratch: Scratch | None,
    *,
    top: bool,
) -> Rows:
    """Yield windows [B, n + 2, W, C] of a stream of `count` rows: n rows, and one on either side.

    What is outside of the map, and how wide a window is for it, the border says. The number of
    rows is a multiple of `multiple` but for the last window. A window is one piece of memory, the
    same for all.
    """
    chained, scratch = scratch is not None, scratch or Scratch()
    held: Tensor | None = None  # the rows of the window before with which the next begins
    for band in rows:
        count -= band.shape[1]
        # A window of its own for the last row takes a GPU as long as one of many, and a chain as
        # long as all of its layers: each would pass on one more such band than it gets.
        at_once = chained or devices.kind(band.device) == "gpu"
        closed = count == 0 and multiple == 1 and at_once
        above = int(top) if held is None else held.shape[1]
        height = above + band.shape[1] + closed
        window = scratch.window(band, height, border.width(band.shape[2]))
        border.fill(window[:, above : above + band.shape[1]], band, write)
        del band  # while this stream waits, nobody else may need it
        if held is not None:
            window[:, :above].copy_(held)
        elif top:
            border.outside(window[:, :1], window[:, 1:2])
        if closed:
            border.outside(window[:, -1:], window[:, -2:-1])
            yield window
            return
        whole = max(0, height - 2) // multiple * multiple
        held = window[:, whole:].clone()
        if whole:
            yield window[:, : whole + 2]
    if held is not None and held.shape[1] > 1:
        window = scratch.window(held, held.shape[1] + 1, held.shape[2])
        window[:, :-1].copy_(held)
        border.outside(window[:, -1:], window[:, -2:-1])
        yield window
