"""FLUX.1: tokens [B, S, 64] or [B, 16, h, w]; z / scaling_factor + shift_factor.

Source: diffusers `pipelines/flux/pipeline_flux.py`, `_unpack_latents` and the decoding step.
"""

from .packed import PackedFamily

FLUX = PackedFamily("flux")
