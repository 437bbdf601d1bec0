"""From a job's latents to a decoded tensor, and from that to pixels: the mathematics of a job."""

from __future__ import annotations

import torch
from torch import Tensor

from darkroom_infra.families import Decoded, config_factors
from darkroom_wire.jobs import JobOptions

from .loading import DTYPES, LoadedVae


def prepare(vae: LoadedVae, latents: Tensor, options: JobOptions) -> Tensor:
    """Bring latents into the VAE's layout, device, dtype and scale: [B, C, h, w].

    The cast comes before the scaling, as in the pipelines, whose latents have the VAE's dtype.
    """
    family = vae.entry.layout
    grid = family.unpack(latents, options, vae.facts).to(vae.device, DTYPES[vae.dtype])
    return config_factors(vae.config, options).undo(grid)


def plan(vae: LoadedVae, latents: Tensor, options: JobOptions) -> Decoded:
    """Say what latents will give, now that the VAE is known for certain.

    Raises:
        LatentsError: they do not fit the VAE.
    """
    return vae.entry.layout.plan(tuple(latents.shape), options, vae.facts)


def decode(vae: LoadedVae, latents: Tensor) -> Tensor:
    """Decode whole: [B, C, h, w] to [B, 3, H, W] in about [-1, 1]."""
    decoded: Tensor = vae.module.decode(latents, return_dict=False)[0]  # type: ignore[operator]
    return decoded


def to_pixels(decoded: Tensor) -> Tensor:
    """Turn [B, 3, H, W] in about [-1, 1] into uint8 pixels, [B, H, W, 3].

    The same operations in the same dtypes as diffusers' `VaeImageProcessor.postprocess`, so that
    no pixel differs: x / 2 + 0.5 and the clamp in the VAE's dtype, the rounding in float32.
    """
    unit = (decoded * 0.5 + 0.5).clamp(0, 1)
    return (unit.permute(0, 2, 3, 1).float() * 255).round().to(torch.uint8)
