"""The decoders of Wan and Qwen-Image, as they are called: one latent frame after the other.

All that ties a frame to those before it are causal convolutions, which see the last two frames of
their input, and keep them. diffusers decodes so too, but joins what it has after every frame with
the next in a new tensor: the work of copying grows with the square of the number of frames, and the
video lies in memory twice. Here each frame is written to its place in the one result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    QwenImageCausalConv3d,
    QwenImageResample,
)
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanResample,
    unpatchify,
)
from torch import Tensor

from darkroom_worker.banded.layers import is_patched

STEADY: Final = 3
"""From so many latent frames on, every further one takes as much memory: all caches are full."""

Shape = tuple[int, ...]


def supports(vae: Any) -> bool:
    """Tell whether a VAE is one of those, and decodes as its class does, in one piece."""
    if type(vae) not in (AutoencoderKLWan, AutoencoderKLQwenImage):
        return False
    parts = (*vae.decoder.modules(), vae.post_quant_conv)
    return (
        not any(is_patched(part) or part.training for part in parts)
        and not {"decode", "_decode"} & vars(vae).keys()
        and not vae.use_tiling
        and not vae.use_slicing
    )


class FrameStream:
    """Decodes latent frame by latent frame, to the last bit as `vae.decode` does.

    What the convolutions keep belongs to a decode and ends with it, also when it is abandoned.
    Beyond the result, the memory does not depend on the number of frames.
    """

    def __init__(self, vae: Any) -> None:
        """Take a VAE that `supports` knows."""
        self._vae = vae
        modules = list(vae.decoder.modules())
        resamplers = [part for part in modules if isinstance(part, WanResample | QwenImageResample)]
        self._patch: int = getattr(vae.config, "patch_size", None) or 1
        self._space: int = 2 ** len(resamplers) * self._patch
        self._time: int = 2 ** sum(part.mode == "upsample3d" for part in resamplers)
        self._convolutions = sum(
            isinstance(part, WanCausalConv3d | QwenImageCausalConv3d) for part in modules
        )
        self._layers = sum(not any(part.children()) for part in modules)

    def size(self, shape: Shape) -> Shape:
        """Tell the size [B, 3, F, H, W] of the videos of latents of a shape [B, C, T, h, w]."""
        batch, _, frames, height, width = shape
        channels: int = self._vae.decoder.conv_out.out_channels // self._patch**2
        count = 1 + self._time * (frames - 1)
        return (batch, channels, count, height * self._space, width * self._space)

    def decode(self, z: Tensor, on_step: Callable[[], None], out: Tensor) -> None:
        """Decode latents [B, C, T, h, w] into videos [B, 3, F, H, W]."""
        kept: list[Any] = [None] * self._convolutions
        done = 0
        for index, latent in enumerate(torch.split(self._vae.post_quant_conv(z), 1, dim=2)):
            on_step()
            frames = self._decode_frame(latent, kept, first=index == 0)
            out[:, :, done : done + frames.shape[2]] = frames
            done += frames.shape[2]

    def steps(self, shape: Shape) -> int:
        """Count the steps for latents of a shape: each frame, and each layer in it."""
        return shape[2] * (1 + self._layers)

    def steady(self, shape: Shape) -> Shape:
        """Give the latents of the first frames: those that follow take as much memory."""
        batch, channels, frames, *sides = shape
        return (batch, channels, min(frames, STEADY), *sides)

    def kept_bytes(self, shape: Shape) -> int:
        """Count the bytes that grow with the frames, beside the result: none do."""
        del shape
        return 0

    def _decode_frame(self, latent: Tensor, kept: list[Any], *, first: bool) -> Tensor:
        """Decode [B, C, 1, h, w] after what is kept of the frames before, and keep its own."""
        arguments = {"first_chunk": first} if type(self._vae) is AutoencoderKLWan else {}
        made = self._vae.decoder(latent, feat_cache=kept, feat_idx=[0], **arguments)
        frames: Tensor = unpatchify(made, self._patch)
        return frames.clamp_(-1, 1)
