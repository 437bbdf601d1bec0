"""Stable Diffusion v1, v2 and XL, and the tiny autoencoders: [B, C, h, w], z / scaling_factor.

Source: diffusers `pipelines/stable_diffusion/pipeline_stable_diffusion.py`, the decoding step.
"""

from .base import GridFamily

SD = GridFamily("sd")
