"""GroupNorm of maps that are never seen whole: gather the moments band by band, then apply them.

GroupNorm is y = (x - mean) / sqrt(variance + eps) * weight + bias, with the mean and the variance
of a group of channels over the whole picture. Those two are all that is global about it: once they
are known, what remains is one factor and one summand for each channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .fused import arithmetic


@dataclass(frozen=True)
class Affine:
    """What a GroupNorm comes down to: x * scale + shift, both [B, 1, 1, C] in float32."""

    scale: Tensor
    shift: Tensor

    def activate(self, rows: Tensor, out: Tensor) -> None:
        """Write SiLU(rows * scale + shift) to `out`; both are [B, r, W, C].

        In half precision everything is computed in float32 and rounded once at the end.
        """
        arithmetic(rows, out).activate(rows, self.scale, self.shift, out)

    def __call__(self, rows: Tensor) -> Tensor:
        """Give rows * scale + shift, rounded to the dtype of `rows`."""
        return torch.addcmul(self.shift, rows.float(), self.scale).to(rows.dtype)


class Moments:
    """The count, mean and squared deviations of each picture's channels, gathered over bands.

    Sums run over differences to a pivot, a mean of the first band, so that nothing cancels where
    a channel's mean is large against its deviation; bands are summed up in float64.
    """

    def __init__(self) -> None:
        self._count = 0
        self._pivot = torch.empty(0)
        self._totals = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        """Count rows in, [B, r, W, C]."""
        by = arithmetic(rows)
        if self._count == 0:
            self._pivot = by.choose_pivot(rows)
            self._totals = torch.zeros(
                (2, *self._pivot.shape), dtype=torch.float64, device=rows.device
            )
        self._totals += by.sum_deviations(rows, self._pivot)
        self._count += rows.shape[1] * rows.shape[2]

    def affine(self, norm: nn.GroupNorm) -> Affine:
        """Turn what was gathered into what `norm` does to these pictures."""
        by = arithmetic(norm.weight[None], norm.bias[None])
        return Affine(*by.normalize(self._totals, self._pivot, self._count, norm))
