"""The arithmetic of GroupNorm over bands in plain PyTorch, for every device.

Shapes: rows [B, r, W, C]; a value for each channel [B, 1, 1, C].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def activate(rows: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    """Write SiLU(rows * scale + shift) to `out`.

    In half precision everything is computed in float32 and rounded once at the end.
    """
    if out.dtype == torch.float32:
        torch.addcmul(shift, rows, scale, out=out)
        functional.silu(out, inplace=True)
    else:
        values = torch.addcmul(shift, rows.float(), scale)
        out.copy_(functional.silu(values, inplace=True))


def choose_pivot(rows: Tensor) -> Tensor:
    """Choose what differences are taken to, in float32: the mean of the rows."""
    return rows.mean((1, 2), keepdim=True, dtype=torch.float32)


def sum_deviations(rows: Tensor, pivot: Tensor) -> Tensor:
    """Sum up the differences to the pivot and their squares: [2, B, 1, 1, C]."""
    difference = rows - pivot
    sums = difference.sum((1, 2), keepdim=True)
    return torch.stack((sums, difference.square_().sum((1, 2), keepdim=True)))


def normalize(
    totals: Tensor, pivot: Tensor, count: int, norm: nn.GroupNorm
) -> tuple[Tensor, Tensor]:
    """Turn the sums over `count` pixels into a factor and a summand for each channel, in float32.

    Args:
        totals: of differences to the pivot and of their squares, [2, B, 1, 1, C] in float64.
        pivot: in float32.
        count: how many pixels were summed up.
        norm: with its groups, weights and epsilon.
    """
    sums, squares = totals
    offsets = sums / count
    means = offsets + pivot
    variances = squares / count - offsets.square()
    batch, *_, channels = means.shape
    grouped = (batch, 1, norm.num_groups, channels // norm.num_groups)
    # Channels of one group have equal counts: the group's variance is the mean of the variances
    # and the variance of the means.
    group_means = means.view(grouped).mean(-1, keepdim=True)
    spread = (means.view(grouped) - group_means).square()
    group_variances = (variances.view(grouped) + spread).mean(-1, keepdim=True)
    factors = (group_variances + norm.eps).rsqrt().expand(grouped).reshape(means.shape)
    scale = factors * norm.weight
    shift = norm.bias - group_means.expand(grouped).reshape(means.shape) * scale
    return scale.float(), shift.float()
