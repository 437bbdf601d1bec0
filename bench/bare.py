"""Decodes in a bare loop: `python -m bench.bare CATALOG VAE SIZE COUNT [DEVICE DTYPE]`.

It prints pictures a second.

The worker's own fastest decode, and nothing around it but turning what comes out into pixels.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from darkroom_infra.catalog import Catalog
from darkroom_wire.jobs import JobOptions
from darkroom_worker import decoding, heap
from darkroom_worker.loading import load, locate

from .vaes import random_latents


def main(
    catalog: Path, vae: str, size: int, count: int, device: str = "cpu", dtype: str = "auto"
) -> float:
    """Decode one picture after the other, and count pictures a second."""
    heap.prepare()
    entry = Catalog.load(catalog)[vae]
    loaded = load(entry, locate(entry), device=torch.device(device), dtype=dtype)
    options, latents = JobOptions(vae=vae), random_latents(size)

    def decode() -> None:
        decoded, _ = decoding.decode(loaded, latents, options)
        decoding.to_pixels(decoded).cpu()  # on a GPU this waits for it

    with torch.inference_mode():
        decode()
        began = time.perf_counter()
        for _ in range(count):
            decode()
    return count / (time.perf_counter() - began)


if __name__ == "__main__":
    _, catalog, vae, size, count, *rest = sys.argv
    print(main(Path(catalog), vae, int(size), int(count), *rest))
