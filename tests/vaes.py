"""Small VAEs with seeded random weights, in folders as `save_pretrained` writes them."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

WIDTHS = (32, 32, 64, 64)


def make_kl(channels: int = 4, widths: tuple[int, ...] = WIDTHS, **config: float) -> AutoencoderKL:
    """Make an `AutoencoderKL` with the spatial factor 8; `config` has its scaling."""
    torch.manual_seed(channels)
    levels = len(widths)
    vae = AutoencoderKL(
        latent_channels=channels,
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        **config,
    )
    return _contrasting(vae)


def make_tiny(channels: int = 4) -> AutoencoderTiny:
    """Make an `AutoencoderTiny` of a quarter of the usual width."""
    torch.manual_seed(channels)
    widths = (16, 16, 16, 16)
    vae = AutoencoderTiny(
        latent_channels=channels,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
    )
    return _contrasting(vae)


def _contrasting(vae: torch.nn.Module) -> torch.nn.Module:
    """Widen the last layer, so that pictures use the range and a wrong scale shows."""
    last = [layer for layer in vae.decoder.modules() if isinstance(layer, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight *= 4
    return vae.eval()


def write_catalog(folder: Path, entries: dict[str, dict[str, str]]) -> Path:
    """Write a catalogue file."""
    tables = []
    for name, entry in entries.items():
        lines = [f'{key} = "{value}"' for key, value in entry.items()]
        tables.append("\n".join([f'[vaes."{name}"]', *lines]))
    path = folder / "catalog.toml"
    path.write_text("\n\n".join(tables))
    return path
