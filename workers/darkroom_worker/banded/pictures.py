"""The decoders of `AutoencoderKL` and `AutoencoderKLFlux2`, block by block."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, AutoencoderKLFlux2
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, UpDecoderBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from .layers import (
    Level,
    Structure,
    in_one_place,
    is_attention,
    is_convolution,
    is_norm,
    is_patched,
    middle,
    read_block,
)

CLASSES = (AutoencoderKL, AutoencoderKLFlux2)


def supports(vae: Any) -> bool:
    """Tell whether the decoder of a VAE of these classes has exactly the blocks known here."""
    decoder: Any = vae.decoder
    parts = (decoder, *decoder.modules())
    post_quant = getattr(vae, "post_quant_conv", None)
    if post_quant is not None:
        parts = (*parts, post_quant)
    return (
        not any(is_patched(part) for part in parts)
        and not {"decode", "_decode"} & vars(vae).keys()
        and (post_quant is None or is_convolution(post_quant, 1))
        and _is_decoder(decoder)
        and in_one_place(parts)
    )


def structure(vae: Any) -> Structure:
    """List the layers of a decoder that is supported."""
    decoder: Any = vae.decoder
    ups = list(decoder.up_blocks)
    before = [None, *(up.upsamplers[0].conv for up in ups[:-1])]
    return Structure(
        post_quant=vae.post_quant_conv,
        conv_in=decoder.conv_in,
        middle=tuple(middle(decoder.mid_block)),
        levels=tuple(
            Level(layer, tuple(map(read_block, up.resnets)))
            for layer, up in zip(before, ups, strict=True)
        ),
        norm_out=decoder.conv_norm_out,
        conv_out=decoder.conv_out,
    )


def _is_decoder(decoder: Any) -> bool:
    return (
        type(decoder) is Decoder
        and not decoder.training
        and is_convolution(decoder.conv_in, 3)
        and type(decoder.mid_block) is UNetMidBlock2D
        and len(decoder.mid_block.attentions) + 1 == len(decoder.mid_block.resnets)
        and all(_is_resnet(block) for block in decoder.mid_block.resnets)
        and all(a is None or is_attention(a) for a in decoder.mid_block.attentions)
        and len(decoder.up_blocks) > 0
        and all(type(up) is UpDecoderBlock2D for up in decoder.up_blocks)
        and all(len(up.resnets) > 0 for up in decoder.up_blocks)
        and all(_is_resnet(block) for up in decoder.up_blocks for block in up.resnets)
        and all(_is_upsampler(up.upsamplers) for up in list(decoder.up_blocks)[:-1])
        and decoder.up_blocks[-1].upsamplers is None
        and is_norm(decoder.conv_norm_out)
        and type(decoder.conv_act) is nn.SiLU
        and is_convolution(decoder.conv_out, 3)
    )


def _is_resnet(block: Any) -> bool:
    return (
        type(block) is ResnetBlock2D
        and is_norm(block.norm1)
        and is_norm(block.norm2)
        and is_convolution(block.conv1, 3)
        and is_convolution(block.conv2, 3)
        and type(block.nonlinearity) is nn.SiLU
        and block.time_emb_proj is None
        and block.time_embedding_norm in ("default", "group")
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1
        and (block.conv_shortcut is None or is_convolution(block.conv_shortcut, 1))
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
        and is_convolution(layer.conv, 3)
    )
