"""Decoders that take one latent frame at a time: those of Wan and Qwen-Image.

All that ties a frame to those before it are causal convolutions, which see the last two frames of
their input, and keep them. diffusers decodes so too, but joins what it has after every frame with
the next in a new tensor: the work of copying grows with the square of the number of frames, and the
video lies in memory twice. Here each frame is written to its place in the one result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, lru_cache
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

from darkroom_worker.banded import Mode
from darkroom_worker.banded.decoder import nothing
from darkroom_worker.banded.layers import is_patched
from darkroom_worker.footprint import held_in_pieces, hollow

from .protocol import EXACT_STREAMED

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

    method: Final = EXACT_STREAMED
    modes: Final = (Mode.FAST,)

    def __init__(self, vae: Any) -> None:
        """Take a VAE.

        Raises:
            ValueError: it is not known, or it would decode in tiles.
        """
        if not supports(vae):
            raise ValueError(f"this {type(vae).__name__} is not known to decode frame by frame")
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
        weight: Tensor = vae.decoder.conv_in.weight
        self._dtype, self._device = weight.dtype, weight.device
        self._most: Callable[[Shape], int] = lru_cache(256)(self._count_most)

    def applies(self, shape: Shape) -> bool:
        """Tell whether latents of a shape are decoded so: always."""
        del shape
        return True

    def is_faster(self, shape: Shape) -> bool:
        """Tell whether this is faster than a decode in one piece: it does less, never more."""
        del shape
        return True

    @torch.inference_mode()
    def decode(
        self, z: Tensor, mode: Mode = Mode.FAST, on_step: Callable[[], None] = nothing
    ) -> Tensor:
        """Decode latents as `vae.decode` takes them.

        Args:
            z: [B, C, T, h, w], in the dtype and on the device of the weights.
            mode: has no effect: the least memory is that of the fastest way.
            on_step: called before each latent frame. What it raises ends the decode.

        Returns:
            A video for each: [B, 3, 1 + f (T - 1), H, W], where f is 4 for Wan.
        """
        del mode
        video = z.new_empty(self._result(tuple(z.shape)))
        kept: list[Any] = [None] * self._convolutions
        done = 0
        for index, latent in enumerate(torch.split(self._vae.post_quant_conv(z), 1, dim=2)):
            on_step()
            frames = self._decode_frame(latent, kept, first=index == 0)
            video[:, :, done : done + frames.shape[2]] = frames
            done += frames.shape[2]
        return video

    def steps(self, shape: Shape, mode: Mode = Mode.FAST) -> int:
        """Count the steps for latents of a shape [B, C, T, h, w].

        Each frame is one, and each layer in it, for the layers are called, and tell whoever listens
        to them.
        """
        del mode
        return shape[2] * (1 + self._layers)

    def predicted_bytes(self, shape: Shape, mode: Mode = Mode.FAST) -> int:
        """Predict the peak of memory beyond the weights for latents [B, C, T, h, w].

        The videos are counted in, the latents are not.
        """
        del mode
        batch, channels, frames, height, width = shape
        few = (batch, channels, min(frames, STEADY), height, width)
        more = math.prod(self._result(shape)) - math.prod(self._result(few))
        return self._most(few) + more * self._dtype.itemsize

    def _decode_frame(self, latent: Tensor, kept: list[Any], *, first: bool) -> Tensor:
        """Decode [B, C, 1, h, w] after what is kept of the frames before, and keep its own."""
        arguments = {"first_chunk": first} if type(self._vae) is AutoencoderKLWan else {}
        frames: Tensor = self._vae.decoder(latent, feat_cache=kept, feat_idx=[0], **arguments)
        if self._patch > 1:
            frames = unpatchify(frames, self._patch)
        return frames.clamp_(-1, 1)

    def _result(self, shape: Shape) -> Shape:
        batch, _, frames, height, width = shape
        channels: int = self._vae.decoder.conv_out.out_channels // self._patch**2
        count = 1 + self._time * (frames - 1)
        return (batch, channels, count, height * self._space, width * self._space)

    def _count_most(self, shape: Shape) -> int:
        return held_in_pieces(self._hollow.decode, shape, self._dtype, self._device.type)

    @cached_property
    def _hollow(self) -> FrameStream:
        return FrameStream(hollow(self._vae))
