"""The layers of a decoder in the order in which they are applied, and what can be told of any."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import nn

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


Convolution = nn.Conv2d | nn.Conv3d
"""A layer of a decoder of pictures, or of videos."""


@dataclass(frozen=True)
class Block:
    """The layers of a ResNet block, shortcut(x) + conv2(SiLU(norm2(conv1(SiLU(norm1(x))))))."""

    norm1: nn.GroupNorm
    conv1: Convolution
    norm2: nn.GroupNorm
    conv2: Convolution
    conv_shortcut: Convolution | None


@dataclass(frozen=True)
class Level:
    """The blocks at one size. `upsampler` is the convolution after the doubling that leads there.

    It is None for the first level. `doubles_frames` tells whether it comes after a doubling of all
    frames but the first, too.
    """

    upsampler: Convolution | None
    blocks: tuple[Block, ...]
    doubles_frames: bool = False


@dataclass(frozen=True)
class Structure:
    """The layers of a decoder in the order in which they are applied.

    `middle` are blocks and attentions at the latents' size; `levels` begin there, and each has
    twice the height and width of the one before.
    """

    post_quant: Convolution | None
    conv_in: Convolution
    middle: tuple[Block | Attention, ...]
    levels: tuple[Level, ...]
    norm_out: nn.GroupNorm
    conv_out: Convolution

    @property
    def factor(self) -> int:
        """How many times higher and wider pictures are than latents."""
        return 1 << (len(self.levels) - 1)

    @property
    def is_video(self) -> bool:
        """Whether it decodes videos: convolutions see earlier frames, too."""
        return isinstance(self.conv_in, nn.Conv3d)


def middle(block: Any) -> Iterator[Block | Attention]:
    """List the layers of a mid block."""
    yield read_block(block.resnets[0])
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            yield attention
        yield read_block(resnet)


def read_block(block: Any) -> Block:
    """Read the layers of a ResNet block; what convolves causally has its convolution inside."""
    layers = (block.conv1, block.conv2, block.conv_shortcut)
    first, second, shortcut = (getattr(layer, "conv", layer) for layer in layers)
    return Block(block.norm1, first, block.norm2, second, shortcut)


def is_patched(part: nn.Module) -> bool:
    """Tell whether calling a module does something else before or instead of its `forward`.

    Hooks that run afterwards are passed over: the engine feels the pulse by them.
    """
    return "forward" in vars(part) or bool(vars(part).get("_forward_pre_hooks"))


def is_convolution(layer: Any, size: int) -> bool:
    """Tell whether a layer is a convolution of that size with as many zeros around as it needs."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == (size, size)
        and layer.padding == (size // 2, size // 2)
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
    )


def is_norm(layer: Any) -> bool:
    """Tell whether a layer is a GroupNorm with weights, and no class that was made of it."""
    return type(layer) is nn.GroupNorm and layer.affine


def is_attention(layer: Any) -> bool:
    """Tell whether a layer is attention that normalises, asks, mixes and adds."""
    return (
        type(layer) is Attention
        and type(layer.processor) in (AttnProcessor, AttnProcessor2_0)
        and is_norm(layer.group_norm)
        and layer.spatial_norm is None
        and layer.norm_q is None
        and layer.norm_k is None
        and layer.norm_cross is None
        and layer.residual_connection
        and layer.rescale_output_factor == 1
        and layer.scale_qk
        and not layer.is_causal
        and layer.query_dim == layer.inner_dim == layer.inner_kv_dim == layer.out_dim
        and all(type(p) is nn.Linear for p in (layer.to_q, layer.to_k, layer.to_v, layer.to_out[0]))
    )


def in_one_place(parts: Iterable[nn.Module]) -> bool:
    """All weights are on one device and of one dtype that is known here."""
    kinds = {(p.device, p.dtype) for part in parts for p in part.parameters()}
    return len(kinds) == 1 and next(iter(kinds))[1] in DTYPES
