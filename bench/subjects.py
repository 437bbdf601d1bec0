"""What `bench.gpu` measures: decoders, dtypes and sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from . import vaes


@dataclass(frozen=True)
class Subject:
    """A decoder: whose it is, the channels of its latents and its own."""

    name: str
    channels: int
    widths: tuple[int, ...]

    def vae(self, dtype: torch.dtype, device: torch.device) -> AutoencoderKL:
        """Make it, with seeded weights; only what decodes."""
        vae = vaes.kl(self.widths, dtype, self.channels)
        del vae.encoder
        return vae.to(device)

    def latents(
        self, size: int, dtype: torch.dtype, device: torch.device, batch: int = 1
    ) -> Tensor:
        """Make latents of pictures of so many pixels a side."""
        return vaes.random_latents(size, dtype, self.channels, batch).to(device)


@dataclass(frozen=True)
class Scope:
    """How much is measured."""

    subjects: tuple[Subject, ...]
    dtypes: list[torch.dtype]
    sizes: tuple[int, ...]
    check_size: int
    check_batch: int
    batches: tuple[int, ...]
    bands: tuple[int, ...]
    service: tuple[str, tuple[int, ...], int]
    """Which VAE of `vaes`, the sides of its pictures, and how many jobs."""


FULL = Scope(
    (Subject("SD and SDXL", 4, vaes.WIDTHS), Subject("FLUX", 16, vaes.WIDTHS)),
    [torch.bfloat16, torch.float16],
    (512, 1024, 2048),
    check_size=256,
    check_batch=4,
    batches=(1, 4, 16),
    bands=tuple(size << 20 for size in (16, 32, 64, 128, 256)),
    service=("kl-sd", (512, 1024), 64),
)
QUICK = Scope(
    (Subject("small, 4 channels", 4, (32, 32)), Subject("small, 16 channels", 16, (32, 32))),
    [torch.bfloat16, torch.float16],
    (64,),
    check_size=64,
    check_batch=8,
    batches=(1, 2),
    bands=(1 << 14, 1 << 18),
    service=("tiny", (64,), 8),
)
