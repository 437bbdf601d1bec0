"""The decoder of `AutoencoderKLHunyuanVideo`, block by block."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from diffusers import AutoencoderKLHunyuanVideo
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import (
    HunyuanVideoCausalConv3d,
    HunyuanVideoDecoder3D,
    HunyuanVideoMidBlock3D,
    HunyuanVideoResnetBlockCausal3D,
    HunyuanVideoUpBlock3D,
    HunyuanVideoUpsampleCausal3D,
)
from torch import nn

from .layers import (
    Level,
    Structure,
    in_one_place,
    is_attention,
    is_norm,
    is_patched,
    middle,
    read_block,
)

CLASSES = (AutoencoderKLHunyuanVideo,)

LARGER = ((1, 2, 2), (2, 2, 2))
"""By how much an upsampling multiplies frames, rows and columns: frames do not always double."""


def supports(vae: Any) -> bool:
    """Tell whether the decoder of a VAE of this class has exactly the blocks known here."""
    decoder = vae.decoder
    parts = (*decoder.modules(), vae.post_quant_conv)
    return (
        not any(is_patched(part) for part in parts)
        and not {"decode", "_decode"} & vars(vae).keys()
        and not vae.use_tiling
        and not vae.use_slicing
        and _is_plain(vae.post_quant_conv, 1)
        and _is_decoder(decoder)
        and in_one_place(parts)
    )


def structure(vae: Any) -> Structure:
    """List the layers of a decoder that is supported."""
    decoder = vae.decoder
    ups = list(decoder.up_blocks)
    levels = [Level(None, tuple(map(read_block, ups[0].resnets)))]
    for before, up in pairwise(ups):
        larger = before.upsamplers[0]
        doubles_frames = larger.upsample_factor[0] == 2
        blocks = tuple(map(read_block, up.resnets))
        levels.append(Level(larger.conv.conv, blocks, doubles_frames))
    return Structure(
        post_quant=vae.post_quant_conv,
        conv_in=decoder.conv_in.conv,
        middle=tuple(middle(decoder.mid_block)),
        levels=tuple(levels),
        norm_out=decoder.conv_norm_out,
        conv_out=decoder.conv_out.conv,
    )


def longest_in_one_piece(vae: nn.Module) -> int | None:
    """Tell up to how many latent frames a VAE decodes in one piece; None where it always does.

    HunyuanVideo's decodes longer videos in tiles along time by default, and so does its pipeline.
    The tiles are blended: the frames are not those that a decode in one piece would give.
    """
    longest: int | None = getattr(vae, "tile_sample_min_num_frames", None)
    if longest is None or not getattr(vae, "use_framewise_decoding", False):
        return None
    factor: int = vae.temporal_compression_ratio  # type: ignore[assignment]
    return longest // factor


def _is_decoder(decoder: Any) -> bool:
    return (
        type(decoder) is HunyuanVideoDecoder3D
        and not decoder.training
        and _is_causal(decoder.conv_in, 3)
        and type(decoder.mid_block) is HunyuanVideoMidBlock3D
        and len(decoder.mid_block.attentions) + 1 == len(decoder.mid_block.resnets)
        and all(_is_resnet(block) for block in decoder.mid_block.resnets)
        and all(a is None or is_attention(a) for a in decoder.mid_block.attentions)
        and len(decoder.up_blocks) > 0
        and all(type(up) is HunyuanVideoUpBlock3D for up in decoder.up_blocks)
        and all(len(up.resnets) > 0 for up in decoder.up_blocks)
        and all(_is_resnet(block) for up in decoder.up_blocks for block in up.resnets)
        and all(_is_upsampler(up.upsamplers) for up in list(decoder.up_blocks)[:-1])
        and decoder.up_blocks[-1].upsamplers is None
        and is_norm(decoder.conv_norm_out)
        and type(decoder.conv_act) is nn.SiLU
        and _is_causal(decoder.conv_out, 3)
    )


def _is_resnet(block: Any) -> bool:
    return (
        type(block) is HunyuanVideoResnetBlockCausal3D
        and is_norm(block.norm1)
        and is_norm(block.norm2)
        and _is_causal(block.conv1, 3)
        and _is_causal(block.conv2, 3)
        and type(block.nonlinearity) is nn.SiLU
        and (block.conv_shortcut is None or _is_causal(block.conv_shortcut, 1))
    )


def _is_upsampler(upsamplers: Any) -> bool:
    if upsamplers is None or len(upsamplers) != 1:
        return False
    layer = upsamplers[0]
    return (
        type(layer) is HunyuanVideoUpsampleCausal3D
        and tuple(layer.upsample_factor) in LARGER
        and _is_causal(layer.conv, 3)
    )


def _is_causal(layer: Any, size: int) -> bool:
    side = size // 2
    return (
        type(layer) is HunyuanVideoCausalConv3d
        and layer.pad_mode == "replicate"
        and layer.time_causal_padding == (side, side, side, side, size - 1, 0)
        and _is_plain(layer.conv, size)
    )


def _is_plain(layer: Any, size: int) -> bool:
    """Tell whether a layer is a convolution that pads nothing by itself."""
    return (
        type(layer) is nn.Conv3d
        and layer.kernel_size == (size, size, size)
        and layer.padding == (0, 0, 0)
        and layer.stride == layer.dilation == (1, 1, 1)
        and layer.groups == 1
    )
