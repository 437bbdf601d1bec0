"""Which decoders are known: every block is checked, for what is not known cannot be exact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, UpDecoderBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Level:
    """The blocks at one size. `upsampler` is the convolution after the doubling that leads there.

    It is None for the first level.
    """

    upsampler: nn.Conv2d | None
    blocks: tuple[ResnetBlock2D, ...]


@dataclass(frozen=True)
class Structure:
    """The layers of a decoder in the order in which they are applied.

    `middle` are blocks and attentions at the latents' size; `levels` begin there, and each has
    twice the height and width of the one before.
    """

    post_quant: nn.Conv2d | None
    conv_in: nn.Conv2d
    middle: tuple[ResnetBlock2D | Attention, ...]
    levels: tuple[Level, ...]
    norm_out: nn.GroupNorm
    conv_out: nn.Conv2d

    @property
    def factor(self) -> int:
        """How many times higher and wider pictures are than latents."""
        return 1 << (len(self.levels) - 1)


def supports(vae: nn.Module) -> bool:
    """Tell whether a VAE's decoder consists of exactly the blocks that are known here."""
    if type(vae) not in (AutoencoderKL, AutoencoderKLFlux2):
        return False
    decoder: Any = vae.decoder
    parts = (decoder, *decoder.modules())
    post_quant = getattr(vae, "post_quant_conv", None)
    if post_quant is not None:
        parts = (*parts, post_quant)
    return (
        not any(is_patched(part) for part in parts)
        and not {"decode", "_decode"} & vars(vae).keys()
        and (post_quant is None or _is_convolution(post_quant, 1))
        and _is_decoder(decoder)
        and _same_place(parts)
    )


def structure(vae: nn.Module) -> Structure:
    """List a decoder's layers.

    Raises:
        ValueError: `supports` says no to it.
    """
    if not supports(vae):
        raise ValueError(f"the decoder of this {type(vae).__name__} is not known block by block")
    decoder: Any = vae.decoder
    ups = list(decoder.up_blocks)
    before = [None, *(up.upsamplers[0].conv for up in ups[:-1])]
    return Structure(
        post_quant=vae.post_quant_conv,  # type: ignore[arg-type]
        conv_in=decoder.conv_in,
        middle=tuple(_middle(decoder.mid_block)),
        levels=tuple(
            Level(layer, tuple(up.resnets)) for layer, up in zip(before, ups, strict=True)
        ),
        norm_out=decoder.conv_norm_out,
        conv_out=decoder.conv_out,
    )


def _middle(block: Any) -> Iterator[ResnetBlock2D | Attention]:
    yield block.resnets[0]
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            yield attention
        yield resnet


def _is_decoder(decoder: Any) -> bool:
    return (
        type(decoder) is Decoder
        and not decoder.training
        and _is_convolution(decoder.conv_in, 3)
        and type(decoder.mid_block) is UNetMidBlock2D
        and len(decoder.mid_block.attentions) + 1 == len(decoder.mid_block.resnets)
        and all(_is_resnet(block) for block in decoder.mid_block.resnets)
        and all(a is None or _is_attention(a) for a in decoder.mid_block.attentions)
        and len(decoder.up_blocks) > 0
        and all(type(up) is UpDecoderBlock2D for up in decoder.up_blocks)
        and all(len(up.resnets) > 0 for up in decoder.up_blocks)
        and all(_is_resnet(block) for up in decoder.up_blocks for block in up.resnets)
        and all(_is_upsampler(up.upsamplers) for up in list(decoder.up_blocks)[:-1])
        and decoder.up_blocks[-1].upsamplers is None
        and _is_norm(decoder.conv_norm_out)
        and type(decoder.conv_act) is nn.SiLU
        and _is_convolution(decoder.conv_out, 3)
    )


def is_patched(part: nn.Module) -> bool:
    """Tell whether calling a module does something else before or instead of its `forward`.

    Hooks that run afterwards are passed over: the engine feels the pulse by them.
    """
    return "forward" in vars(part) or bool(vars(part).get("_forward_pre_hooks"))


def _is_convolution(layer: Any, size: int) -> bool:
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size == (size, size)
        and layer.padding == (size // 2, size // 2)
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
    )


def _is_norm(layer: Any) -> bool:
    return type(layer) is nn.GroupNorm and layer.affine


def _is_resnet(block: Any) -> bool:
    return (
        type(block) is ResnetBlock2D
        and _is_norm(block.norm1)
        and _is_norm(block.norm2)
        and _is_convolution(block.conv1, 3)
        and _is_convolution(block.conv2, 3)
        and type(block.nonlinearity) is nn.SiLU
        and block.time_emb_proj is None
        and block.time_embedding_norm in ("default", "group")
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1
        and (block.conv_shortcut is None or _is_convolution(block.conv_shortcut, 1))
    )


def _is_upsampler(upsamplers: Any) -> bool:
    if upsamplers is None or len(upsamplers) != 1:
        return False
    layer = upsamplers[0]
    return (
        type(layer) is Upsample2D
        and layer.norm is None
        and layer.use_conv
        and not layer.use_conv_transpose
        and layer.interpolate
        and layer.name == "conv"
        and _is_convolution(layer.conv, 3)
    )


def _is_attention(layer: Any) -> bool:
    return (
        type(layer) is Attention
        and type(layer.processor) in (AttnProcessor, AttnProcessor2_0)
        and _is_norm(layer.group_norm)
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


def _same_place(parts: Iterable[nn.Module]) -> bool:
    """All weights are on one device and of one dtype that is known here."""
    kinds = {(p.device, p.dtype) for part in parts for p in part.parameters()}
    return len(kinds) == 1 and next(iter(kinds))[1] in DTYPES
