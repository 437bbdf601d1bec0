"""Decode latents band by band: the same picture as `vae.decode` gives, to float rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional

from darkroom_worker import heap
from darkroom_worker.footprint import HEAP_BYTES

from . import devices, volumes
from .attention import attend
from .layers import Block, Convolution, Level
from .layout import to_channels_first, to_rows
from .maps import PackedMap, PlainMap
from .memory import BlockPlan, Grid, LevelPlan, Mode, Plan, grids_of, plan, steps, working_bytes
from .norm import Moments
from .resnet import Source, Stored, Upsampled, convolution, resnet
from .streams import convolve
from .structure import structure
from .videos import longest_in_one_piece

FASTER_BYTES = heap.LARGE
"""From so large a last map on a CPU decodes faster in bands: the heap reuses smaller ones."""

TRIM_PIXELS = 1 << 16
"""From so many on, a block takes longer than the heap takes to be trimmed, by a hundred times."""

VIDEO_HEAP_BYTES = 180 << 20
"""`HEAP_BYTES` for videos, measured for HunyuanVideo: a row of all frames makes large bands."""

EXACT_BANDED: Final = "exact-banded"
"""The method's name in the provenance of a job."""


def nothing() -> None:
    """Take a step without telling anybody."""


class BandedDecoder:
    """Decodes as a VAE does whose decoder `supports` knows.

    It reads the VAE's weights where they are, in their dtype and on their device, and holds no
    memory of its own between decodes.
    """

    method: Final = EXACT_BANDED

    def __init__(self, vae: nn.Module) -> None:
        """Take a VAE.

        Raises:
            ValueError: its decoder is not known block by block.
        """
        self._vae = vae
        self._structure = structure(vae)
        weight = self._structure.conv_in.weight
        self._dtype, self._kind = weight.dtype, devices.kind(weight.device)

    def modes(self, shape: tuple[int, ...]) -> tuple[Mode, ...]:
        """Name the modes, the fastest first: they are the same for all shapes."""
        del shape
        return tuple(Mode)

    def applies(self, shape: tuple[int, ...]) -> bool:
        """Tell whether the VAE decodes latents of a shape in one piece: then they can be."""
        longest = longest_in_one_piece(self._vae)
        return longest is None or shape[2] <= longest

    @torch.inference_mode()
    def decode(
        self, z: Tensor, mode: Mode = Mode.BALANCED, on_step: Callable[[], None] = nothing
    ) -> Tensor:
        """Decode latents as `vae.decode` takes them.

        On a CPU pictures are decoded one after the other, for one fills it; elsewhere together.
        Videos are everywhere decoded one after the other.

        Args:
            z: [B, C, h, w] or [B, C, T, h, w], in the dtype and on the device of the weights.
            mode: what to give memory for.
            on_step: called `steps` times, before each band. What it raises ends the decode.

        Returns:
            Pictures [B, 3, f h, f w], where f is 8 for four levels; or videos [B, 3, F, f h, f w],
            where F is 4 (T - 1) + 1 for two levels that double frames.
        """
        layers, batch = self._structure, len(z)
        *_, last = grids_of(layers, self._groups(tuple(z.shape))[0])
        frames = (last.frames,) if layers.is_video else ()
        size = (layers.conv_out.out_channels, *frames, last.height, last.columns)
        pictures = z.new_empty(batch, *size)
        at_once = self._at_once(batch)
        for part, out in zip(torch.split(z, at_once), torch.split(pictures, at_once), strict=True):
            self._decode(part, mode, on_step, out)
        return pictures

    def is_faster(self, shape: tuple[int, ...]) -> bool:
        """Tell whether latents of a shape decode faster in bands than in one piece."""
        *_, last = grids_of(self._structure, self._groups(shape)[0])
        largest = last.bytes(self._structure.conv_out.in_channels)
        at_home = self._kind == "cpu" and self._dtype is torch.float32
        return at_home and largest >= FASTER_BYTES

    def steps(self, shape: tuple[int, ...], mode: Mode) -> int:
        """Count how many times `on_step` will be called for latents of a shape."""
        groups = self._groups(shape)
        layers = self._structure
        return sum(steps(layers, plan(layers, grid, mode), self._kind) for grid in groups)

    def predicted_bytes(self, shape: tuple[int, ...], mode: Mode) -> int:
        """Predict the peak of memory beyond the weights for latents of a shape.

        The pictures are counted in, the latents are not. From 256 x 256 pixels on a CPU it was
        within 9 % of what was measured, for a VAE of Stable Diffusion's size.
        """
        layers, largest = self._structure, self._groups(shape)[0]
        *_, pictures = grids_of(layers, replace(largest, batch=shape[0]))
        kept = working_bytes(layers, plan(layers, largest, mode), largest)
        spent = VIDEO_HEAP_BYTES if layers.is_video else HEAP_BYTES
        spent = spent if self._kind == "cpu" else 0
        return pictures.bytes(layers.conv_out.out_channels) + kept + spent

    def _at_once(self, batch: int) -> int:
        return 1 if self._kind == "cpu" or self._structure.is_video else batch

    def _groups(self, shape: tuple[int, ...]) -> list[Grid]:
        """List what is decoded together of latents of a shape."""
        batch, _, *frames, height, columns = shape
        size = self._at_once(batch)
        return [
            Grid(min(size, batch - first), height, columns, self._dtype, self._kind, *frames)
            for first in range(0, batch, size)
        ]

    def _decode(self, z: Tensor, mode: Mode, on_step: Callable[[], None], out: Tensor) -> None:
        layers = self._structure
        (grid,) = self._groups(tuple(z.shape))
        run = _Run(plan(layers, grid, mode), on_step, trims=self._kind == "cpu")
        x = run.begin(_enter(z, layers.post_quant, layers.conv_in))
        x = run.middle(x, layers.middle)
        for level, planned in zip(layers.levels, run.plan.levels, strict=True):
            x = run.level(x, level, planned)
        run.finish(x, layers.norm_out, layers.conv_out, out)


def _enter(z: Tensor, post_quant: Convolution | None, conv_in: Convolution) -> Tensor:
    """Apply a decoder's first layers to latents, and give the rows of the first map."""
    if isinstance(conv_in, nn.Conv3d):
        return volumes.enter(z if post_quant is None else post_quant(z), conv_in)
    if post_quant is not None:
        z = functional.conv2d(z, post_quant.weight, post_quant.bias)
    return to_rows(functional.conv2d(z, conv_in.weight, conv_in.bias, padding=1))


class _Run:
    """One decode under way."""

    def __init__(self, planned: Plan, on_step: Callable[[], None], *, trims: bool) -> None:
        self.plan = planned
        self._step = on_step
        self._trims = trims

    def begin(self, rows: Tensor) -> Stored:
        """Store the first map."""
        x = PlainMap(self.plan.first, self._step)
        moments = Moments()
        x.write(0, rows)
        moments.add(rows)
        return Stored(x, moments)

    def middle(self, x: Stored, layers: tuple[Block | Attention, ...]) -> Stored:
        """Apply the mid block."""
        blocks = iter(self.plan.middle)
        for layer in layers:
            if isinstance(layer, Attention):
                x = self._attend(x, layer)
            else:
                x = self._block(x, layer, next(blocks))
        return x

    def _attend(self, x: Stored, layer: Attention) -> Stored:
        pixels, shape = torch.cat(list(x.map.read()), 1), x.map.shape
        if shape.frames > 1:
            pixels = volumes.by_frames(pixels, shape.frames)
            attend(pixels, layer, self._step, causal=True)
            pixels = volumes.by_rows(pixels, shape.height)
        else:
            attend(pixels, layer, self._step)
        x.map.write(0, pixels)
        moments = Moments()
        moments.add(pixels)
        return Stored(x.map, moments)

    def level(self, x: Stored, level: Level, planned: LevelPlan) -> Stored:
        """Apply the blocks of a level, after the upsampling that leads there."""
        source: Source = x
        if level.upsampler is not None and planned.input is not None:
            kind = PackedMap if planned.blocks[0].packed else PlainMap
            kept = kind(planned.input, self._step)
            source = upsampled = Upsampled(
                x.map, level.upsampler, kept, planned.keep, doubles_frames=level.doubles_frames
            )
            if planned.stored:
                source = upsampled.store(kept)
        first, *others = zip(level.blocks, planned.blocks, strict=True)
        made = self._block(source, *first)
        for block, block_plan in others:
            made = self._block(made, block, block_plan)
        return made

    def finish(self, x: Stored, norm: nn.GroupNorm, layer: Convolution, out: Tensor) -> None:
        """Write the pictures, [B, 3, (F,) H, W], and let go of the last map."""
        shape, row = x.map.shape, 0
        last, affine = convolution(layer, shape), x.moments.affine(norm)
        for band in convolve(x.rows(), last, affine.activate, shape.height):
            part = volumes.leave(band, shape.frames) if out.ndim == 5 else to_channels_first(band)
            out[..., row : row + band.shape[1], :] = part
            row += band.shape[1]
            x.release(row)

    def _block(self, x: Source, block: Block, planned: BlockPlan) -> Stored:
        if self._trims and planned.shape.pixels >= TRIM_PIXELS:
            # What the block before has left free in pieces serves this one badly.
            heap.trim()
        kind = PackedMap if planned.packed else PlainMap
        return resnet(x, block, kind(planned.shape, self._step), planned.keep)
