"""What every peer does with latents: diffusers' decode and Pillow's PNG, at its fastest level."""

import base64
import io
import os

import safetensors.torch
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.image_processor import VaeImageProcessor

CLASSES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}


class Decoder:
    """A VAE of `BENCH_VAE`, a folder that `save_pretrained` wrote."""

    def __init__(self) -> None:
        folder = os.environ["BENCH_VAE"]
        name = AutoencoderKL.load_config(folder)["_class_name"]
        self._vae = CLASSES[name].from_pretrained(folder).eval()
        self._processor = VaeImageProcessor(vae_scale_factor=8)

    @torch.inference_mode()
    def png(self, body: bytes) -> bytes:
        """Decode a safetensors file with one tensor of latents, as its pipeline does."""
        (latents,) = safetensors.torch.load(body).values()
        decoded = self._vae.decode(latents / self._vae.config.scaling_factor, return_dict=False)[0]
        (picture,) = self._processor.postprocess(decoded, output_type="pil")
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=1)
        return file.getvalue()

    def base64_png(self, body: str) -> str:
        """The same for those that speak JSON."""
        return base64.b64encode(self.png(base64.b64decode(body))).decode()
