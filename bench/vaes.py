"""The VAEs that are measured: real sizes, seeded random weights, some contrast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

WIDTHS = (128, 256, 512, 512)
"""The channels of Stable Diffusion's VAE."""

NARROW = (32, 64, 128, 128)
"""Those of a small one, a sixteenth of the work."""

CONTRAST = 2.0
"""What the last convolution's weights are multiplied with: outputs then deviate by about 0.8."""


def kl(
    widths: tuple[int, ...] = WIDTHS, dtype: torch.dtype = torch.float32, channels: int = 4
) -> AutoencoderKL:
    """Make an AutoencoderKL for latents of so many channels."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        latent_channels=channels,
        block_out_channels=widths,
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
    )
    with torch.no_grad():
        vae.decoder.conv_out.weight *= CONTRAST
    return vae.eval().to(dtype)


def tiny() -> AutoencoderTiny:
    """Make an AutoencoderTiny of taesd's size."""
    torch.manual_seed(0)
    return AutoencoderTiny().eval()


VAES: Mapping[str, Callable[[], nn.Module]] = {
    "kl-sd": kl,
    "kl-small": lambda: kl(NARROW),
    "tiny": tiny,
}


def random_latents(
    size: int, dtype: torch.dtype = torch.float32, channels: int = 4, batch: int = 1
) -> Tensor:
    """Make the latents of pictures of so many pixels a side, [B, C, h, w]."""
    torch.manual_seed(1)
    return torch.randn(batch, channels, size // 8, size // 8).to(dtype)


def save(folder: Path) -> Path:
    """Write every VAE as `save_pretrained` does, and a catalogue that names them."""
    entries = []
    for name, make in VAES.items():
        make().save_pretrained(folder / name)  # type: ignore[operator]
        entries.append(f'[vaes.{name}]\nfamily = "sd"\nsource = "{folder / name}"\n')
    catalog = folder / "catalog.toml"
    catalog.write_text("\n".join(entries))
    return catalog
