"""How much of each map is kept: what a mode means, and how much memory it takes.

A map's bytes are B H W C times the size of a number. What is kept beyond the least that a level
needs saves computing it again. The last level has by far the largest maps: a mode says how much it
may keep, and the others may use as much.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from .attention import query_rows
from .convolution import winograd_bytes
from .devices import Kind
from .layers import Block, Convolution, Level, Structure
from .maps import MapShape

WORKING_BYTES: dict[Kind, int] = {"cpu": 2 << 20, "gpu": 32 << 20}
"""How large bands are: they stay in a core's cache, or fill a GPU.

A convolution in half precision has a tile of 128 pixels by 128 channels for each 32 KiB of its
output, 1,024 for 32 MiB: eight rounds of the 132 multiprocessors of an H100, the last three
quarters full. Larger bands would fill it hardly better, and no longer be small beside the maps of
1024 x 1024 pixels or in the 50 to 72 MB of its or an RTX 4090's cache. This is reckoned, not
measured: `python -m bench.gpu` tries others.
"""

WORKING_PIXELS = 4096
"""At least so many pixels have a band, so that the weights are not read too often."""


class Mode(StrEnum):
    """What to give memory for, the fastest first.

    For a decoder as Stable Diffusion's, in float32:

    `fast` keeps every map: 1,536 bytes for each pixel of the picture. `balanced` never has all of
    the upsampled input of the last level, and less than half of what its blocks have inside: 736.
    `small` keeps nothing inside of the last level's blocks, and in float32 its one map in 24 bits:
    384.
    """

    FAST = "fast"
    BALANCED = "balanced"
    SMALL = "small"


@dataclass(frozen=True)
class BlockPlan:
    """A block's output, and how many of the first rows of what it has inside are kept.

    `map_bytes` is what it has of maps at most, its input among them.
    """

    shape: MapShape
    keep: int
    packed: bool
    map_bytes: int


@dataclass(frozen=True)
class LevelPlan:
    """How a level is computed.

    Attributes:
        input: The shape of its upsampled input, where there is one.
        keep: How many of the first rows of that are kept until they are read for the first time.
        stored: Whether all are, for as long as they are needed.
        blocks: Its blocks.
    """

    input: MapShape | None
    keep: int
    stored: bool
    blocks: tuple[BlockPlan, ...]


@dataclass(frozen=True)
class Plan:
    """How a decode goes: the first map's shape, the mid block and the levels."""

    first: MapShape
    middle: tuple[BlockPlan, ...]
    levels: tuple[LevelPlan, ...]


@dataclass(frozen=True)
class Grid:
    """Maps of a size, in one dtype and on one kind of device: pictures, or videos of `frames`."""

    batch: int
    height: int
    columns: int
    dtype: torch.dtype
    device: Kind
    frames: int = 1

    @property
    def width(self) -> int:
        """The number of pixels of a row, that is of all frames."""
        return self.frames * self.columns

    @property
    def pixels(self) -> int:
        """The number of pixels of one map."""
        return self.height * self.width

    def larger(self, *, doubles_frames: bool) -> Grid:
        """Double height and columns, and perhaps all frames but the first."""
        frames = 2 * self.frames - 1 if doubles_frames else self.frames
        return replace(self, height=2 * self.height, columns=2 * self.columns, frames=frames)

    def map(self, channels: int) -> MapShape:
        """Choose the bands of a map of so many channels."""
        row = self.bytes(channels) // self.height
        band = max(1, WORKING_BYTES[self.device] // row, WORKING_PIXELS // self.width)
        band = min(self.height, band)
        return MapShape(self.batch, self.height, self.width, channels, band, self.frames)

    def bytes(self, channels: int) -> int:
        """Count the bytes of a map of so many channels."""
        return self.batch * self.pixels * channels * self.dtype.itemsize

    def packed_bytes(self, channels: int) -> int:
        """Count the bytes of a map in 24 bits, with a unit for each row of a channel."""
        return self.batch * channels * self.height * (3 * self.width + 4)


def grids_of(decoder: Structure, latents: Grid) -> list[Grid]:
    """List the sizes of the levels' maps."""
    grids = [latents]
    for level in decoder.levels[1:]:
        grids.append(grids[-1].larger(doubles_frames=level.doubles_frames))
    return grids


def plan(decoder: Structure, latents: Grid, mode: Mode) -> Plan:
    """Plan a decode of latents of a size."""
    grids = grids_of(decoder, latents)
    packed = mode is Mode.SMALL and latents.dtype == torch.float32
    room = _room(decoder, grids, mode)
    middle = tuple(
        _plan_block(latents, _channels(block)[1], latents.bytes(_channels(block)[0]), room)
        for block in decoder.middle
        if not isinstance(block, Attention)
    )
    levels = []
    for before, grid, level in zip(_before(grids), grids, decoder.levels, strict=True):
        last = level is decoder.levels[-1]
        levels.append(_plan_level(before, grid, level, room, packed=packed and last))
    first = latents.map(decoder.conv_in.out_channels)
    return Plan(first, middle, tuple(levels))


def _before(grids: list[Grid]) -> list[Grid]:
    """Give for each level the size of what it is made from."""
    return [grids[0], *grids[:-1]]


def _plan_level(before: Grid, grid: Grid, level: Level, room: int, *, packed: bool) -> LevelPlan:
    channels, made = _channels(level.blocks[0])
    shape, keep = None, 0
    resident = grid.bytes(channels)
    stored = resident + grid.bytes(made) <= room and not packed
    if level.upsampler is not None:
        shape = grid.map(channels)
        if not stored:
            resident = before.bytes(level.upsampler.in_channels)
            # What will be of the block's inside has room for these before.
            keep = _rows_within(room - resident, grid, channels, packed=packed)
    blocks = []
    for block in level.blocks:
        made = _channels(block)[1]
        blocks.append(_plan_block(grid, made, resident, room, packed=packed))
        resident = grid.packed_bytes(made) if packed else grid.bytes(made)
    return LevelPlan(shape, keep, stored, tuple(blocks))


def _plan_block(
    grid: Grid, channels: int, resident: int, room: int, *, packed: bool = False
) -> BlockPlan:
    """Keep as many rows as there is room for beside what is resident already."""
    whole = grid.packed_bytes(channels) if packed else grid.bytes(channels)
    keep = _rows_within(room - resident, grid, channels, packed=packed)
    most = max(resident + keep * whole // grid.height, whole)
    return BlockPlan(grid.map(channels), keep, packed, most)


def _rows_within(room: int, grid: Grid, channels: int, *, packed: bool) -> int:
    """Count the rows of a map that have room. One alone is not worth it."""
    whole = grid.packed_bytes(channels) if packed else grid.bytes(channels)
    rows = min(grid.height, max(0, room) * grid.height // whole)
    return rows if rows > 1 else 0


def _room(decoder: Structure, grids: list[Grid], mode: Mode) -> int:
    """Count the bytes of maps that a mode allows: at least what every level needs."""
    if mode is Mode.FAST:
        return max(map(_all, grids, decoder.levels))
    *_, last = grids
    level = decoder.levels[-1]
    made = [_channels(block)[1] for block in level.blocks]
    *_, small = _before(grids)
    before = 0 if level.upsampler is None else small.bytes(level.upsampler.in_channels)
    least = list(map(_least, _before(grids), grids, decoder.levels))
    if mode is Mode.BALANCED:
        return max(*least, before + last.bytes(made[0]) * 15 // 16)
    if last.dtype == torch.float32:
        return max(*least[:-1], before, last.packed_bytes(max(made)))
    return max(least)


def _all(grid: Grid, level: Level) -> int:
    """Count what a level has if everything is kept: a block's input and what is inside of it."""
    return max(grid.bytes(sum(_channels(block))) for block in level.blocks)


def _least(before: Grid, grid: Grid, level: Level) -> int:
    """Count what a level has at least: its output, and an input that cannot be computed anew."""
    sizes = [grid.bytes(_channels(block)[1]) for block in level.blocks]
    if level.upsampler is None:
        channels, made = _channels(level.blocks[0])
        sizes.append(grid.bytes(channels if channels == made else channels + made))
    else:
        sizes.append(before.bytes(level.upsampler.in_channels))
    return max(sizes)


def _channels(block: Block) -> tuple[int, int]:
    return block.conv1.in_channels, block.conv2.out_channels


def steps(decoder: Structure, planned: Plan, device: Kind) -> int:
    """Count the bands that a decode reads, and the bands of queries of its attentions."""
    first = planned.first
    blocks = iter(planned.middle)
    count = 0
    for layer in decoder.middle:
        if isinstance(layer, Attention):
            count += first.reads()
            if first.frames > 1:
                count += first.frames
            else:
                rows = query_rows(first.height, first.width, layer.query_dim, device)
                count += -(-first.height // rows)
        else:
            count += _block_steps(first, layer, next(blocks), doubled=False)
    before = first
    for level, level_plan in zip(decoder.levels, planned.levels, strict=True):
        x, doubled = before, False
        if level_plan.input is not None:
            count += before.reads()  # for the moments of the upsampled map, or to store it
            doubled = not level_plan.stored
            if level_plan.stored:
                x = level_plan.input
            elif keep := level_plan.keep:
                # Those are read instead of what they are computed from.
                count += level_plan.input.reads(0, keep) - before.reads()
                if keep < level_plan.input.height:
                    count += before.reads(max(0, keep // 2 - 1))
        for block, block_plan in zip(level.blocks, level_plan.blocks, strict=True):
            count += _block_steps(x, block, block_plan, doubled=doubled)
            x, doubled = block_plan.shape, False
        before = x
    return count + before.reads()


def _block_steps(x: MapShape, block: Block, planned: BlockPlan, *, doubled: bool) -> int:
    """Count the bands that a block reads: x, what is kept of h, x for the rest, the shortcut."""
    count = x.reads() + planned.shape.reads(0, planned.keep)
    if planned.keep < planned.shape.height:
        start = max(0, planned.keep - 1)
        count += x.reads(max(0, start // 2 - 1) if doubled else start)
    if doubled or block.conv_shortcut is not None:
        count += x.reads()
    return count


def working_bytes(decoder: Structure, planned: Plan, latents: Grid) -> int:
    """Predict the peak of memory: the maps that are kept, and what is needed to compute them."""
    peak = 0
    blocks = iter(planned.middle)
    for layer in decoder.middle:
        if isinstance(layer, Attention):
            # The map and a copy, what is normalised, keys and values, and the queries of a step.
            # Of a video there is another copy, by frames.
            peak = max(peak, (6 + (latents.frames > 1)) * latents.bytes(layer.query_dim))
        else:
            peak = max(peak, _block_bytes(latents, layer, next(blocks), None))
    grids = grids_of(decoder, latents)
    for before, grid, level, level_plan in zip(
        _before(grids), grids, decoder.levels, planned.levels, strict=True
    ):
        doubling = None
        if level.upsampler is not None and not level_plan.stored:
            doubling = _Doubling(before, level.upsampler)
        for block, block_plan in zip(level.blocks, level_plan.blocks, strict=True):
            peak = max(peak, _block_bytes(grid, block, block_plan, doubling))
            doubling = None
    return peak


@dataclass(frozen=True)
class _Doubling:
    """The upsampling that a block's input is computed by: from what size, by which layer."""

    small: Grid
    layer: Convolution


def _block_bytes(grid: Grid, block: Block, planned: BlockPlan, doubling: _Doubling | None) -> int:
    """Count a block's maps, the bands on their way through it and what is made of its weights."""
    anew = planned.keep < grid.height
    first, second = (winograd_bytes(layer, grid.pixels) for layer in (block.conv1, block.conv2))
    weights: int = first + second if anew else max(first, second)
    first, second = block.conv1.weight.nbytes, block.conv2.weight.nbytes
    # As they are ordered for as long as they are used, and oneDNN orders them again in each band.
    weights += first + second if anew else max(first, second)
    weights += max(first, second) if grid.device == "cpu" else 0
    if doubling is not None:
        # Four kernels of 2 x 2 for one of 3 x 3; for a video eight of 2 x 2 x 2, and a copy.
        times = 3 if isinstance(doubling.layer, nn.Conv3d) else 2
        weights += times * doubling.layer.weight.nbytes
        if block.conv_shortcut is not None:
            weights += doubling.layer.weight.nbytes
    return planned.map_bytes + weights + _band_bytes(grid, block, planned, doubling)


def _band_bytes(grid: Grid, block: Block, planned: BlockPlan, doubling: _Doubling | None) -> int:
    """Count the bands that exist at once in the larger of a block's two passes.

    A convolution has its window and its output, the moments have a difference, an upsampling has
    a quarter for its window and half for two columns' parities beside its output.
    """
    channels, made = _channels(block)
    rows = grid.map(channels).band
    doubled = doubling is not None
    if doubling is not None:
        rows = 2 * max(1, doubling.small.map(channels).band // 4)
    wide, narrow = (rows * grid.bytes(count) // grid.height for count in (channels, made))
    first = wide + narrow + (7 * wide // 4 if doubled else 0)
    kept = planned.shape.band * grid.bytes(made) // grid.height if planned.keep else narrow
    second = (6 if planned.packed else 3) * kept
    if planned.keep < grid.height:
        second += first
    if block.conv_shortcut is not None or doubled:
        second += 3 * narrow // 2 + wide // 4
    return max(first + narrow, second)
