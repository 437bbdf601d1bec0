"""Encode a picture with an `AutoencoderTiny` and measure how it comes back."""

import math

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image


@torch.inference_mode()
def encode(model: AutoencoderTiny, image: Image.Image) -> torch.Tensor:
    """Return the latents of an RGB picture whose sides are multiples of 8.

    Returns:
        float16 of shape [1, 4, height / 8, width / 8], contiguous, roughly within [-3, 3].
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    latents = model.encode(pixels.float().div(127.5).sub(1)).latents
    return latents.half().contiguous()


@torch.inference_mode()
def decode(model: AutoencoderTiny, latents: torch.Tensor) -> np.ndarray:
    """Decode latents of shape [1, 4, h, w] to uint8 pixels of shape [8h, 8w, 3]."""
    y = model.decode(latents.float()).sample.add(1).mul(127.5).round().clamp(0, 255)
    return y[0].permute(1, 2, 0).to(torch.uint8).numpy()


def psnr(model: AutoencoderTiny, latents: torch.Tensor, image: Image.Image) -> float:
    """PSNR in dB between an RGB picture and the 8-bit picture that its latents decode to."""
    error = decode(model, latents).astype(np.float32) - np.asarray(image, dtype=np.float32)
    return -10 * math.log10(float(np.square(error / 255).mean()))
