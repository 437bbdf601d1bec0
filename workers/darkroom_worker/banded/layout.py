"""The layout of maps: [B, rows, columns, channels], and the same memory seen as [B, C, H, W].

In this layout a band of rows is one piece of memory, and to PyTorch it is a picture in
`channels_last`, the layout in which CPUs and GPUs convolve fastest.
"""

from __future__ import annotations

from torch import Tensor


def to_channels_first(rows: Tensor) -> Tensor:
    """See [B, r, W, C] as [B, C, r, W]."""
    return rows.permute(0, 3, 1, 2)


def to_rows(picture: Tensor) -> Tensor:
    """See [B, C, r, W] as [B, r, W, C]."""
    return picture.permute(0, 2, 3, 1)
