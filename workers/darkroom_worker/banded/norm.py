"""GroupNorm of maps that are never seen whole: gather the moments band by band, then apply them.

GroupNorm is y = (x - mean) / sqrt(variance + eps) * weight + bias, with the mean and the variance
of a group of channels over the whole picture. Those two are all that is global about it: once they
are known, what remains is one factor and one summand for each channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Affine:
    """What a GroupNorm comes down to: x * scale + shift, both [B, 1, 1, C] in float32."""

    scale: Tensor
    shift: Tensor

    def activate(self, rows: Tensor, out: Tensor) -> None:
        """Write SiLU(rows * scale + shift) to `out`; both are [B, r, W, C].

        In half precision everything is computed in float32 and rounded once at the end.
        """
        if out.dtype == torch.float32:
            torch.addcmul(self.shift, rows, self.scale, out=out)
            functional.silu(out, inplace=True)
        else:
            values = torch.addcmul(self.shift, rows.float(), self.scale)
            out.copy_(functional.silu(values, inplace=True))

    def __call__(self, rows: Tensor) -> Tensor:
        """Give rows * scale + shift, rounded to the dtype of `rows`."""
        return torch.addcmul(self.shift, rows.float(), self.scale).to(rows.dtype)


class Moments:
    """The count, mean and squared deviations of each picture's channels, gathered over bands.

    Sums run over differences to a pivot, the mean of the first band, so that nothing cancels where
    a channel's mean is large against its deviation; bands are summed up in float64.
    """

    def __init__(self) -> None:
        self._count = 0
        self._pivot = torch.empty(0)
        self._sums = torch.empty(0)
        self._squares = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        """Count rows in, [B, r, W, C]."""
        if self._count == 0:
            self._pivot = rows.mean((1, 2), keepdim=True, dtype=torch.float32)
            self._sums = torch.zeros_like(self._pivot, dtype=torch.float64)
            self._squares = torch.zeros_like(self._sums)
        difference = rows - self._pivot
        self._sums += difference.sum((1, 2), keepdim=True)
        self._squares += difference.square_().sum((1, 2), keepdim=True)
        self._count += rows.shape[1] * rows.shape[2]

    def affine(self, norm: nn.GroupNorm) -> Affine:
        """Turn what was gathered into what `norm` does to these pictures."""
        offsets = self._sums / self._count
        means = offsets + self._pivot
        variances = self._squares / self._count - offsets.square()
        batch, *_, channels = means.shape
        grouped = (batch, 1, norm.num_groups, channels // norm.num_groups)
        # Channels of one group have equal counts: the group's variance is the mean of the
        # variances and the variance of the means.
        group_means = means.view(grouped).mean(-1, keepdim=True)
        spread = (means.view(grouped) - group_means).square()
        group_variances = (variances.view(grouped) + spread).mean(-1, keepdim=True)
        factors = (group_variances + norm.eps).rsqrt().expand(grouped).reshape(means.shape)
        scale = factors * norm.weight
        shift = norm.bias - group_means.expand(grouped).reshape(means.shape) * scale
        return Affine(scale.float(), shift.float())
