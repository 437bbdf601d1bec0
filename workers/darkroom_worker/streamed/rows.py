"""The decoders of Wan and Qwen-Image in rows of all frames, where those of one step are too many.

A step of one latent frame holds four frames in 96 channels, and for each convolution the two
frames before: 22 KB a pixel. But no layer behind the mid block sees more than a pixel's neighbours:
norms are of a pixel's channels, and the only attention comes before. So rows of all frames, as of
one map, pass through the layers from the top, and each convolution keeps the two rows with which
its next window begins. Instead of the whole area of a few frames, a few rows of all frames are
held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from diffusers.models.autoencoders import autoencoder_kl_qwenimage as qwen
from diffusers.models.autoencoders import autoencoder_kl_wan as wan
from torch import Tensor, nn
from torch.nn import functional

from darkroom_worker.banded.borders import Blank, Write, split_frames
from darkroom_worker.banded.layers import in_one_place, is_convolution
from darkroom_worker.banded.streams import Rows, Scratch, add, convolve, fork, split, upsample
from darkroom_worker.banded.volumes import (
    FrameDoubling,
    VolumeConvolution,
    VolumeParityKernels,
    leave,
)

BAND_PIXELS = 1 << 13
"""About so many pixels of all frames a band has, in whole rows."""

STEADY_ROWS = 16
"""After so many rows of latents, and a band, each layer keeps all that it will ever keep."""

EPSILON: Final = 1e-12
"""What a pixel is divided by at least, as in `torch.nn.functional.normalize`."""

Shape = tuple[int, ...]

PADDING = {3: (1, 1, 1, 1, 2, 0), 1: (0, 0, 0, 0, 0, 0)}
"""How causal convolutions of a size pad columns, rows and frames, on either side."""


@dataclass(frozen=True)
class Level:
    """The blocks at one size and what leads to the next, which the last level lacks."""

    resnets: tuple[Any, ...]
    resampler: Any | None
    shortcut: Any | None


@dataclass(frozen=True)
class Extent:
    """The size of a map: its rows, and the frames and columns of each."""

    rows: int
    frames: int
    columns: int

    @property
    def pixels(self) -> int:
        """The pixels of all frames."""
        return self.rows * self.frames * self.columns

    @property
    def band(self) -> int:
        """How many rows a band has."""
        return max(1, BAND_PIXELS // (self.frames * self.columns))


def supports(vae: Any) -> bool:
    """Tell whether the decoder of a VAE that decodes frame by frame is known layer by layer."""
    decoder = vae.decoder
    return (
        type(decoder) in (wan.WanDecoder3d, qwen.QwenImageDecoder3d)
        and type(decoder.nonlinearity) is nn.SiLU
        and _is_causal(decoder.conv_in, 3)
        and _is_causal(decoder.conv_out, 3)
        and _is_norm(decoder.norm_out)
        and type(decoder.mid_block) in (wan.WanMidBlock, qwen.QwenImageMidBlock)
        and all(map(_is_level, decoder.up_blocks))
        and in_one_place(decoder.modules())
    )


class RowStream:
    """Decodes as `vae.decode` does, to float rounding, in rows of all frames."""

    def __init__(self, vae: Any) -> None:
        """Take a VAE that `supports` knows."""
        self._vae = vae
        self._decoder = vae.decoder
        self._levels = tuple(map(_level, vae.decoder.up_blocks))
        entered = (vae.decoder.conv_in, *vae.decoder.mid_block.modules())
        self._layers = sum(not any(part.children()) for part in entered)
        self._patch: int = getattr(vae.config, "patch_size", None) or 1
        doublings = sum(level.resampler is not None for level in self._levels)
        self._factor: int = 2**doublings * self._patch

    def decode(self, z: Tensor, on_step: Callable[[], None], out: Tensor) -> None:
        """Decode latents [B, C, T, h, w] into videos [B, 3, F, H, W], one after the other."""
        for one, video in zip(torch.split(z, 1), torch.split(out, 1), strict=True):
            first = Extent(one.shape[3], one.shape[2], one.shape[4])
            entered = torch.split(self.enter(one, on_step), first.band, dim=1)
            bands = self._stream(_stepping(entered, on_step), first)
            self._leave(bands, on_step, video)

    def steps(self, shape: Shape) -> int:
        """Count the steps for latents of a shape.

        They are the frames in the mid block, with its layers, the bands that go on from there, and
        the rows of the videos.
        """
        batch, _, frames, height, width = shape
        bands = math.ceil(height / Extent(height, frames, width).band)
        return batch * (frames * (1 + self._layers) + bands + height * self._factor)

    def steady(self, shape: Shape) -> Shape:
        """Give the latents of the first rows: those that follow take as much memory."""
        _, channels, frames, height, width = shape
        few = Extent(height, frames, width).band + STEADY_ROWS
        return (1, channels, frames, min(height, few), width)

    def kept_bytes(self, shape: Shape) -> int:
        """Count the bytes of one video's map at the latents' size."""
        _, _, frames, height, width = shape
        weight: Tensor = self._decoder.conv_in.weight
        return frames * height * width * len(weight) * weight.dtype.itemsize

    def enter(self, z: Tensor, on_step: Callable[[], None]) -> Tensor:
        """Bring one video's latents through the mid block: rows [1, h, T w, C]."""
        decoder = self._decoder
        z = self._vae.post_quant_conv(z)
        _, _, frames, height, width = z.shape
        made = z.new_empty(1, height, frames, width, decoder.conv_in.out_channels)
        kept: list[Tensor | None] = [None] * (2 * len(decoder.mid_block.resnets))
        for index in range(frames):
            on_step()
            before = z[:, :, max(0, index - 2) : index] if index else None
            frame = decoder.conv_in(z[:, :, index : index + 1], before)
            frame = decoder.mid_block(frame, feat_cache=kept, feat_idx=[0])
            made[:, :, index] = frame[:, :, 0].permute(0, 2, 3, 1)
        return made.flatten(2, 3)

    def _stream(self, bands: Rows, extent: Extent) -> Rows:
        """Bring rows of all frames from the latents' size to the video's, [1, r, F W, 3]."""
        for level in self._levels:
            bands, extent = _through(bands, level, extent)
        last = VolumeConvolution(self._decoder.conv_out, extent.pixels, Blank(extent.frames, 2))
        bands = split(bands, extent.band)
        return convolve(bands, last, _activated(self._decoder.norm_out), extent.rows, Scratch())

    def _leave(self, bands: Rows, on_step: Callable[[], None], video: Tensor) -> None:
        """Write bands into the one video [1, 3, F, H, W]."""
        done = 0
        for band in bands:
            part = wan.unpatchify(leave(band, video.shape[2]), self._patch).clamp_(-1, 1)
            height = part.shape[3]
            for _ in range(height):
                on_step()
            video[:, :, :, done : done + height] = part
            done += height


def _stepping(bands: Iterable[Tensor], on_step: Callable[[], None]) -> Rows:
    for band in bands:
        on_step()
        yield band


def _through(bands: Rows, level: Level, extent: Extent) -> tuple[Rows, Extent]:
    """Bring bands through the blocks of a level, to the size of the next."""
    scratch = Scratch()
    beside: Rows = iter(())
    if level.shortcut is not None:
        bands, beside = fork(bands)
    for resnet in level.resnets:
        bands = _resnet(bands, resnet, extent, scratch)
    if level.resampler is None:
        return bands, extent
    frames = extent.frames
    if level.resampler.mode == "upsample3d":
        bands = map(FrameDoubling(level.resampler.time_conv, frames), bands)
        frames = 2 * frames - 1
    bands = split(bands, max(1, extent.band // 2))
    kernels = VolumeParityKernels.of_frames(level.resampler.resample[1], frames)
    bands = upsample(bands, kernels, extent.rows, scratch)
    if level.shortcut is not None:
        repeat = partial(_repeated, level.shortcut, extent.frames)
        bands = add(bands, map(repeat, beside))
    larger = Extent(2 * extent.rows, frames, 2 * extent.columns)
    return split(bands, larger.band), larger


def _resnet(bands: Rows, block: Any, extent: Extent, scratch: Scratch) -> Rows:
    """Give shortcut(x) + conv2(SiLU(norm2(conv1(SiLU(norm1(x))))))."""
    made, beside = fork(bands)
    for norm, layer in ((block.norm1, block.conv1), (block.norm2, block.conv2)):
        convolution = VolumeConvolution(layer, extent.pixels, Blank(extent.frames, 2))
        # The last band of a map brings one row more, and so would grow from layer to layer.
        made = split(made, max(extent.band, convolution.multiple))
        made = convolve(made, convolution, _activated(norm), extent.rows, scratch)
    return add(made, map(partial(_shortcut, block.conv_shortcut), beside))


def _shortcut(layer: Any, band: Tensor) -> Tensor:
    if isinstance(layer, nn.Identity):
        return band
    return functional.linear(band, layer.weight.flatten(1), layer.bias)


def _repeated(layer: Any, frames: int, band: Tensor) -> Tensor:
    """Repeat channels as rows, columns and frames, all but the first: [1, 2 r, F 2 W, O]."""
    times, sides = layer.factor_t, layer.factor_s
    volume = split_frames(band, frames).repeat_interleave(layer.repeats, -1)
    _, rows, _, columns, _ = volume.shape
    parts = volume.view(1, rows, frames, columns, layer.out_channels, times, sides, sides)
    size = (1, rows * sides, frames * times, columns * sides, layer.out_channels)
    repeated = parts.permute(0, 1, 6, 2, 5, 3, 7, 4).reshape(size)
    return repeated[:, :, times - 1 :].flatten(2, 3)


def _activated(norm: Any) -> Write:
    """Write SiLU of rows whose pixels' channels are brought to a mean square of 1, and weighted.

    In half precision each factor is rounded as in diffusers.
    """
    gamma = norm.gamma.flatten()
    factors = (gamma * norm.scale,) if gamma.dtype is torch.float32 else (norm.scale, gamma)

    def write(rows: Tensor, out: Tensor) -> None:
        values = rows.float()
        length = torch.linalg.vector_norm(values, dim=-1, keepdim=True).clamp_min_(EPSILON)
        if out.dtype is torch.float32:
            torch.div(values, length, out=out)
        else:
            out.copy_(values / length)
        for factor in factors:
            out.mul_(factor)
        functional.silu(out, inplace=True)

    return write


def _level(block: Any) -> Level:
    if isinstance(block, wan.WanResidualUpBlock):
        return Level(tuple(block.resnets), block.upsampler, block.avg_shortcut)
    resampler = block.upsamplers[0] if block.upsamplers is not None else None
    return Level(tuple(block.resnets), resampler, None)


def _is_level(block: Any) -> bool:
    if type(block) not in (wan.WanUpBlock, wan.WanResidualUpBlock, qwen.QwenImageUpBlock):
        return False
    level = _level(block)
    return all(map(_is_resnet, level.resnets)) and (
        level.resampler is None or _is_resampler(level.resampler)
    )


def _is_resnet(block: Any) -> bool:
    return (
        type(block) in (wan.WanResidualBlock, qwen.QwenImageResidualBlock)
        and type(block.nonlinearity) is nn.SiLU
        and _is_norm(block.norm1)
        and _is_norm(block.norm2)
        and _is_causal(block.conv1, 3)
        and _is_causal(block.conv2, 3)
        and (type(block.conv_shortcut) is nn.Identity or _is_causal(block.conv_shortcut, 1))
    )


def _is_resampler(layer: Any) -> bool:
    doubling, convolution = layer.resample
    return (
        type(layer) in (wan.WanResample, qwen.QwenImageResample)
        and layer.mode in ("upsample2d", "upsample3d")
        and type(doubling) in (wan.WanUpsample, qwen.QwenImageUpsample)
        and (doubling.scale_factor, doubling.mode) == ((2.0, 2.0), "nearest-exact")
        and is_convolution(convolution, 3)
        and (layer.mode == "upsample2d" or layer.time_conv.kernel_size == (3, 1, 1))
    )


def _is_norm(layer: Any) -> bool:
    return (
        type(layer) in (wan.WanRMS_norm, qwen.QwenImageRMS_norm)
        and layer.channel_first
        and not isinstance(layer.bias, Tensor)
    )


def _is_causal(layer: Any, size: int) -> bool:
    return (
        type(layer) in (wan.WanCausalConv3d, qwen.QwenImageCausalConv3d)
        and layer.kernel_size == (size, size, size)
        and layer._padding == PADDING[size]  # noqa: SLF001 - where it keeps what it pads
        and layer.stride == layer.dilation == (1, 1, 1)
        and layer.groups == 1
    )
