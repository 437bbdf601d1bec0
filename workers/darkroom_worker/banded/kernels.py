"""The arithmetic of GroupNorm over bands as Triton kernels: every number is read once.

As `plain`, whose functions they stand for. There an activation in half precision moves 28 bytes
for each number and the moments 22, here 4 and 2: with tensor cores that is the difference between
a tenth of the time of the convolutions and most of it.

A tile is some pixels by some channels, which lie side by side in memory. Offsets between tiles are
in 64 bits; within a tile 32 are enough.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

TILE = 4096
"""How many numbers a tile has: 32 for each thread of four warps."""

TILE_CHANNELS = 128
"""At most so many channels: a row of a tile is two or four lines of memory."""

CHUNK_PIXELS = 256
"""A partial sum in float32 runs over so many pixels. They are added up in float64."""


def activate(rows: Tensor, scale: Tensor, shift: Tensor, out: Tensor) -> None:
    """Write SiLU(rows * scale + shift) to `out`, computed in float32 and rounded once.

    Pixels of a picture of `rows` and of `out` have to lie one after the other.
    """
    batch, height, width, channels = rows.shape
    pixels = height * width
    tile_pixels, tile_channels = _tile(channels)
    grid = (triton.cdiv(pixels, tile_pixels), triton.cdiv(channels, tile_channels), batch)
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
        _activate[grid](
            rows,
            scale,
            shift,
            out,
            rows.stride(0),
            out.stride(0),
            pixels,
            channels,
            tile_pixels,
            tile_channels,
        )


def choose_pivot(rows: Tensor) -> Tensor:
    """Choose what differences are taken to: the mean of the first row, which is near enough."""
    return rows[:, :1].mean((1, 2), keepdim=True, dtype=torch.float32).contiguous()


def sum_deviations(rows: Tensor, pivot: Tensor) -> Tensor:
    """Sum up the differences to the pivot and their squares: [2, B, 1, 1, C] in float64.

    Pixels of a picture of `rows` have to lie one after the other.
    """
    batch, height, width, channels = rows.shape
    pixels, pivot = height * width, pivot.contiguous()
    tile_pixels, tile_channels = _tile(channels)
    parts = triton.cdiv(pixels, CHUNK_PIXELS)
    sums, squares = partial = pivot.new_empty(2, batch, parts, channels)
    grid = (parts, triton.cdiv(channels, tile_channels), batch)
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]
        _sum_deviations[grid](
            rows,
            pivot,
            sums,
            squares,
            rows.stride(0),
            pixels,
            channels,
            parts,
            CHUNK_PIXELS,
            tile_pixels,
            tile_channels,
        )
    return partial.sum(2, dtype=torch.float64).view(2, batch, 1, 1, channels)


def normalize(
    totals: Tensor, pivot: Tensor, count: int, norm: nn.GroupNorm
) -> tuple[Tensor, Tensor]:
    """Turn the sums over `count` pixels into a factor and a summand for each channel."""
    batch, *_, channels = pivot.shape
    sums, squares = totals.contiguous()
    pivot = pivot.contiguous()
    scale, shift = torch.empty_like(pivot), torch.empty_like(pivot)
    size = channels // norm.num_groups
    with torch.cuda.device_of(pivot):  # type: ignore[no-untyped-call]
        _normalize[(norm.num_groups, batch)](
            sums,
            squares,
            pivot,
            norm.weight,
            norm.bias,
            scale,
            shift,
            count,
            norm.eps,
            channels,
            size,
            triton.next_power_of_2(size),
        )
    return scale, shift


def _tile(channels: int) -> tuple[int, int]:
    """Choose how many pixels and channels a tile has; Triton wants powers of two."""
    tile_channels = min(TILE_CHANNELS, triton.next_power_of_2(channels))
    return min(TILE // tile_channels, CHUNK_PIXELS), tile_channels


@triton.jit(do_not_specialize=["pixels"])
def _activate(
    rows: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    out: tl.tensor,
    rows_stride: tl.tensor,
    out_stride: tl.tensor,
    pixels: tl.tensor,
    channels: tl.tensor,
    tile_pixels: tl.constexpr,
    tile_channels: tl.constexpr,
) -> None:
    picture = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)
    is_channel = channel < channels
    factor = tl.load(scale + picture * channels + channel, mask=is_channel, other=0.0)
    summand = tl.load(shift + picture * channels + channel, mask=is_channel, other=0.0)

    first = tl.program_id(0).to(tl.int64) * tile_pixels
    pixel = tl.arange(0, tile_pixels)
    place = pixel[:, None] * channels + channel[None, :]
    inside = (first + pixel < pixels)[:, None] & is_channel[None, :]
    x = tl.load(rows + picture * rows_stride + first * channels + place, mask=inside, other=0.0)
    y = x.to(tl.float32) * factor[None, :] + summand[None, :]
    y = y / (1.0 + tl.exp(-y))
    target = out + picture * out_stride + first * channels + place
    tl.store(target, y.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["pixels", "parts"])
def _sum_deviations(
    rows: tl.tensor,
    pivot: tl.tensor,
    sums: tl.tensor,
    squares: tl.tensor,
    rows_stride: tl.tensor,
    pixels: tl.tensor,
    channels: tl.tensor,
    parts: tl.tensor,
    chunk_pixels: tl.constexpr,
    tile_pixels: tl.constexpr,
    tile_channels: tl.constexpr,
) -> None:
    picture = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)
    is_channel = channel < channels
    center = tl.load(pivot + picture * channels + channel, mask=is_channel, other=0.0)

    part = tl.program_id(0).to(tl.int64)
    first = part * chunk_pixels
    chunk = rows + picture * rows_stride + first * channels
    total = tl.zeros((tile_pixels, tile_channels), tl.float32)
    total_squares = tl.zeros((tile_pixels, tile_channels), tl.float32)
    for start in range(0, chunk_pixels, tile_pixels):
        pixel = start + tl.arange(0, tile_pixels)
        inside = (first + pixel < pixels)[:, None] & is_channel[None, :]
        place = pixel[:, None] * channels + channel[None, :]
        x = tl.load(chunk + place, mask=inside, other=0.0).to(tl.float32)
        difference = tl.where(inside, x - center[None, :], 0.0)
        total += difference
        total_squares += difference * difference
    place = (picture * parts + part) * channels + channel
    tl.store(sums + place, tl.sum(total, 0), mask=is_channel)
    tl.store(squares + place, tl.sum(total_squares, 0), mask=is_channel)


@triton.jit(do_not_specialize=["count"])
def _normalize(
    sums: tl.tensor,
    squares: tl.tensor,
    pivot: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    scale: tl.tensor,
    shift: tl.tensor,
    count: tl.tensor,
    eps: tl.tensor,
    channels: tl.tensor,
    size: tl.tensor,
    tile_channels: tl.constexpr,
) -> None:
    # One group of one picture. In float64, for it is little.
    within = tl.arange(0, tile_channels)
    inside = within < size
    channel = tl.program_id(0) * size + within
    place = tl.program_id(1).to(tl.int64) * channels + channel
    offset = tl.load(sums + place, mask=inside, other=0.0) / count
    variance = tl.load(squares + place, mask=inside, other=0.0) / count - offset * offset
    mean = offset + tl.load(pivot + place, mask=inside, other=0.0).to(tl.float64)
    group_mean = tl.sum(tl.where(inside, mean, 0.0), 0) / size
    spread = mean - group_mean
    group_variance = tl.sum(tl.where(inside, variance + spread * spread, 0.0), 0) / size
    factor = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
    factor = factor / tl.sqrt(group_variance + eps)
    summand = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32).to(tl.float64)
    summand = summand - group_mean * factor
    tl.store(scale + place, factor.to(tl.float32), mask=inside)
    tl.store(shift + place, summand.to(tl.float32), mask=inside)
