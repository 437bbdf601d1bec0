"""What convolutions see outside of a map: zeros, or around some videos repetitions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from . import devices

Write = Callable[[Tensor, Tensor], None]
"""Writes rows, changed or not, to room for as many."""


class Border(Protocol):
    """Lays rows of a map, [B, r, W, C], into windows whose rows may be wider."""

    def width(self, columns: int) -> int:
        """Tell how wide a window's rows are for a map's."""
        ...

    def fill(self, window: Tensor, rows: Tensor, write: Write) -> None:
        """Write rows into as many of a window, and what is beside them."""
        ...

    def outside(self, window: Tensor, nearest: Tensor) -> None:
        """Make a window's row that is above or below the map, beside which `nearest` lies."""
        ...


class Zeros:
    """Zeros above and below; those beside the columns are added by the convolutions themselves."""

    def width(self, columns: int) -> int:
        """Tell that rows are as wide as the map's."""
        return columns

    def fill(self, window: Tensor, rows: Tensor, write: Write) -> None:
        """Write rows, and nothing beside them."""
        write(rows, window)

    def outside(self, window: Tensor, nearest: Tensor) -> None:
        """Write zeros."""
        del nearest
        window.zero_()


ZEROS = Zeros()


@dataclass(frozen=True)
class FrameBorder(ABC):
    """What is around a video, whose rows are those of all its frames, one after the other.

    In windows a row has one column more on either side of each frame, and `before` frames more.
    """

    frames: int
    before: int

    def width(self, columns: int) -> int:
        """Tell how wide rows become."""
        return (self.frames + self.before) * (columns // self.frames + 2)

    def fill(self, window: Tensor, rows: Tensor, write: Write) -> None:
        """Write the rows of one video, and what is at their sides."""
        padded = self.unfold(window)
        inside = padded[:, :, self.before :, 1:-1]
        if devices.kind(rows.device) == "gpu":
            # Kernels write to one piece of memory: another pass is cheaper than those of PyTorch.
            written = torch.empty_like(rows)
            write(rows, written)
            inside.copy_(split_frames(written, self.frames))
        else:
            write(split_frames(rows, self.frames), inside)
        self._surround(padded)

    @abstractmethod
    def outside(self, window: Tensor, nearest: Tensor) -> None:
        """Make a window's row that is above or below the map, beside which `nearest` lies."""

    @abstractmethod
    def _surround(self, padded: Tensor) -> None:
        """Make what is beside and before [B, r, before + T, 1 + W + 1, C]."""

    def unfold(self, window: Tensor) -> Tensor:
        """See a window's rows by frames: [B, r, T + before, W + 2, C]."""
        return split_frames(window, self.frames + self.before)


class Repeated(FrameBorder):
    """Every side repeats what is nearest, and the first frame has been there before."""

    def outside(self, window: Tensor, nearest: Tensor) -> None:
        """Repeat a row."""
        window.copy_(nearest)

    def _surround(self, padded: Tensor) -> None:
        padded[:, :, self.before :, :1] = padded[:, :, self.before :, 1:2]
        padded[:, :, self.before :, -1:] = padded[:, :, self.before :, -2:-1]
        padded[:, :, : self.before] = padded[:, :, self.before : self.before + 1]


class Blank(FrameBorder):
    """Zeros are all around, and were before the first frame."""

    def outside(self, window: Tensor, nearest: Tensor) -> None:
        """Write zeros."""
        del nearest
        window.zero_()

    def _surround(self, padded: Tensor) -> None:
        padded[:, :, self.before :, :1].zero_()
        padded[:, :, self.before :, -1:].zero_()
        padded[:, :, : self.before].zero_()


def split_frames(rows: Tensor, frames: int) -> Tensor:
    """See rows [B, r, T W, C] as [B, r, T, W, C]."""
    batch, height, _, channels = rows.shape
    return rows.view(batch, height, frames, -1, channels)
