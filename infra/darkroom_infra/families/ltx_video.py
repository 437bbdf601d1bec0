"""LTX-Video: tokens [B, S, 128] or [B, 128, T, h, w]; z * std / scaling_factor + mean.

The statistics lie in the weights. A VAE that is conditioned on a timestep is given 0, the
pipeline's default, with which it adds no noise.
Source: diffusers `pipelines/ltx/pipeline_ltx.py`, `_unpack_latents`, `_denormalize_latents` and the
decoding step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .base import VaeFacts, read_count, read_list
from .video import PackedVideoFamily

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LtxVideoFamily(PackedVideoFamily):
    """Tokens of one latent each, packed by pipelines."""

    fps: ClassVar[float | None] = 24.0
    unscaled_in_float32: ClassVar[bool] = True

    def facts(self, config: Mapping[str, Any]) -> VaeFacts:
        """Read both ratios, or where they are left out multiply patch and downsampling steps."""
        factor = 2 ** sum(map(bool, read_list(config, "spatio_temporal_scaling")))
        ratios = [
            read_count(config, ratio)
            if config.get(ratio) is not None
            else read_count(config, patch) * factor
            for ratio, patch in (
                ("spatial_compression_ratio", "patch_size"),
                ("temporal_compression_ratio", "patch_size_t"),
            )
        ]
        return VaeFacts(read_count(config, "latent_channels"), *ratios)

    def decode_arguments(self, latents: Tensor, config: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Give the timestep 0 to a VAE that is conditioned on it."""
        if not config.get("timestep_conditioning"):
            return ()
        return (latents.new_zeros(len(latents)),)


LTX_VIDEO = LtxVideoFamily("ltx-video")
