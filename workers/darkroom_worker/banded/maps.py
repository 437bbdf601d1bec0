"""Feature maps that are stored as bands of rows, so that rows can be freed before the others."""

from __future__ import annotations

import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def allocate(like: Tensor, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Make room on a tensor's device; in main memory, in pages of its own.

    Freeing those gives them back to the system. Among the short-lived tensors of the C library's
    heap, bands would leave holes instead, which keep half as much again from everybody.
    """
    if like.device.type != "cpu":
        return like.new_empty(size, dtype=dtype)
    length = math.prod(size) * dtype.itemsize
    pages = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(size)


def reserves_ahead(like: Tensor) -> bool:
    """Tell whether room on a tensor's device takes no memory before it is written."""
    return like.device.type == "cpu"


@dataclass(frozen=True)
class MapShape:
    """The shape [B, H, W, C] of a map, and how many rows a band has.

    Rows of a video are those of all its frames: W = frames x columns.
    """

    batch: int
    height: int
    width: int
    channels: int
    band: int
    frames: int = 1

    @property
    def pixels(self) -> int:
        """The number of pixels of one picture's map."""
        return self.height * self.width

    def reads(self, start: int = 0, stop: int | None = None) -> int:
        """Count the pieces that reading from one row to another takes."""
        stop = self.height if stop is None else stop
        return -(-stop // self.band) - start // self.band if start < stop else 0


class RowMap(ABC, Generic[T]):
    """A map [B, H, W, C], stored as bands of `shape.band` rows.

    Rows are counted from the top. A band takes memory from when it is written until `release`.
    `step` is called for every piece that is read.
    """

    def __init__(self, shape: MapShape, step: Callable[[], None]) -> None:
        self.shape = shape
        self._step = step
        self._bands: list[T | None] = [None] * -(-shape.height // shape.band)

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        """Yield the rows from `start` to `stop`, at most a band at a time."""
        for index, first, last in self._pieces(start, self.shape.height if stop is None else stop):
            self._step()
            yield self._load(self._band(index), first, last)

    def write(self, start: int, rows: Tensor) -> None:
        """Store rows, [B, r, W, C], from the row `start` on."""
        taken = 0
        for index, first, last in self._pieces(start, start + rows.shape[1]):
            if self._bands[index] is None:
                self._make_room(index, rows)
            self._store(self._band(index), first, rows[:, taken : taken + last - first])
            taken += last - first

    def add(self, start: int, rows: Tensor) -> None:
        """Add rows, [B, r, W, C], to those stored from the row `start` on; `rows` gets the sum."""
        taken = 0
        for index, first, last in self._pieces(start, start + rows.shape[1]):
            piece = rows[:, taken : taken + last - first]
            piece.add_(self._load(self._band(index), first, last))
            self._store(self._band(index), first, piece)
            taken += last - first

    def release(self, before: int) -> None:
        """Free the bands that end at the row `before` or above it."""
        done = before // self.shape.band if before < self.shape.height else len(self._bands)
        for index in range(done - 1, -1, -1):
            if self._bands[index] is None:
                break
            self._bands[index] = None

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Cut rows at the borders of bands: the band, and where its part begins and ends."""
        size = self.shape.band
        while start < stop:
            index, first = divmod(start, size)
            last = min(size, first + stop - start)
            yield index, first, last
            start += last - first

    def _make_room(self, index: int, like: Tensor) -> None:
        """Make room for a band, and in main memory for all after it.

        Pages take no memory before they are written. But the small objects that hold them, made
        one by one among the large ones of a stream, would keep the heap from using that again.
        """
        stop = len(self._bands) if reserves_ahead(like) else index + 1
        for band in range(index, stop):
            height = min(self.shape.band, self.shape.height - band * self.shape.band)
            self._bands[band] = self._allocate(height, like)

    def _band(self, index: int) -> T:
        band = self._bands[index]
        if band is None:
            raise IndexError(f"band {index} of the map is not there")
        return band

    @abstractmethod
    def _allocate(self, height: int, like: Tensor) -> T:
        """Make room for a band of so many rows."""

    @abstractmethod
    def _load(self, band: T, first: int, last: int) -> Tensor:
        """Give rows of a band, [B, r, W, C]; they may be a view."""

    @abstractmethod
    def _store(self, band: T, first: int, rows: Tensor) -> None:
        """Put rows into a band."""


class PlainMap(RowMap[Tensor]):
    """A map in the dtype of its rows."""

    def _allocate(self, height: int, like: Tensor) -> Tensor:
        shape = self.shape
        return allocate(like, (shape.batch, height, shape.width, shape.channels), like.dtype)

    def _load(self, band: Tensor, first: int, last: int) -> Tensor:
        return band[:, first:last]

    def _store(self, band: Tensor, first: int, rows: Tensor) -> None:
        band[:, first : first + rows.shape[1]].copy_(rows)


LARGEST = (1 << 23) - 4
"""The largest number in 24 bits with their sign, less what a division in float32 may round up."""


@dataclass(frozen=True)
class _Packed:
    """Numbers of 24 bits: the upper 16 and the lower 8, [B, r, W, C]; their unit, [B, r, 1, C]."""

    upper: Tensor
    lower: Tensor
    unit: Tensor


class PackedMap(RowMap[_Packed]):
    """A map of float32 rows in three quarters of the memory.

    Each row of a channel is stored as multiples of its largest magnitude / 2^23. What is
    read differs from what was written by at most half of that: about 3e-7 standard deviations,
    as much as a float32 convolution rounds.
    """

    def _allocate(self, height: int, like: Tensor) -> _Packed:
        batch, width, channels = self.shape.batch, self.shape.width, self.shape.channels
        size = (batch, height, width, channels)
        return _Packed(
            allocate(like, size, torch.int16),
            allocate(like, size, torch.uint8),
            allocate(like, (batch, height, 1, channels), like.dtype),
        )

    def _load(self, band: _Packed, first: int, last: int) -> Tensor:
        # Both parts are exact in float32, and so is their sum: 24 bits are its precision.
        rows = band.upper[:, first:last].to(band.unit.dtype)
        rows.mul_(256).add_(band.lower[:, first:last])
        return rows.mul_(band.unit[:, first:last])

    def _store(self, band: _Packed, first: int, rows: Tensor) -> None:
        part = slice(first, first + rows.shape[1])
        unit = torch.linalg.vector_norm(rows, torch.inf, dim=2, keepdim=True).div_(LARGEST)
        unit.clamp_(min=torch.finfo(unit.dtype).tiny)
        numbers = (rows / unit).round_().to(torch.int32)
        band.lower[:, part].copy_(numbers)  # wraps around: the lowest 8 bits
        band.upper[:, part].copy_(numbers.bitwise_right_shift_(8))
        band.unit[:, part].copy_(unit)


AnyMap = PlainMap | PackedMap
