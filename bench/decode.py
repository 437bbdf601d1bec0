"""Measures decodes against diffusers': time, memory and the largest difference.

Each way of decoding runs in processes of its own. Memory is the peak of a process's resident
memory over what it was with the model loaded and a tiny decode done. For times the ways take turns
in one process; CPU seconds are told beside those on the clock, for with one thread other programs
do not change them much. Run it as

    python bench/decode.py --sizes 256 512 --repeats 3 --out bench/decode.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from darkroom_worker.banded import BandedDecoder, Mode

WIDTHS = (128, 256, 512, 512)
"""The channels of Stable Diffusion's VAE."""

Decode = Callable[[Tensor], Tensor]


def make_vae(dtype: torch.dtype) -> AutoencoderKL:
    """Make a VAE of Stable Diffusion's size with seeded random weights and some contrast."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        latent_channels=4,
        block_out_channels=WIDTHS,
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * len(WIDTHS),
        up_block_types=("UpDecoderBlock2D",) * len(WIDTHS),
    )
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 2
    del vae.encoder
    return vae.eval() if dtype == torch.float32 else vae.eval().to(dtype)


def ways(vae: AutoencoderKL) -> dict[str, Decode]:
    """Name the ways to decode."""
    banded = BandedDecoder(vae)

    def whole(z: Tensor) -> Tensor:
        vae.disable_tiling()
        decoded: Tensor = vae.decode(z, return_dict=False)[0]
        return decoded

    def tiled(z: Tensor) -> Tensor:
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = 256, 32
        decoded: Tensor = vae.decode(z, return_dict=False)[0]
        return decoded

    def by_mode(mode: Mode) -> Decode:
        return lambda z: banded.decode(z, mode)

    return {"whole": whole, "tiled": tiled, **{mode.value: by_mode(mode) for mode in Mode}}


def latents(size: int, dtype: torch.dtype) -> Tensor:
    """Make the latents of a picture of so many pixels a side."""
    torch.manual_seed(1)
    return torch.randn(1, 4, size // 8, size // 8).to(dtype)


def resident(field: str) -> int:
    """Read a figure of this process from Linux, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def measure_memory(way: str, size: int, dtype: torch.dtype) -> dict[str, Any]:
    """Decode once, in this process; the time is told too."""
    vae = make_vae(dtype)
    decode = ways(vae)[way]
    with torch.inference_mode():
        decode(latents(64, dtype))
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        wall, cpu = time.perf_counter(), time.process_time()
        decode(latents(size, dtype))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    measured = {"bytes": resident("VmHWM") - before, "seconds": [wall], "cpu": [cpu]}
    if way in list(Mode):
        shape = (1, 4, size // 8, size // 8)
        measured["predicted"] = BandedDecoder(vae).predicted_bytes(shape, Mode(way))
    return measured


def measure_times(
    chosen: list[str], size: int, dtype: torch.dtype, repeats: int
) -> dict[str, dict[str, Any]]:
    """Decode several times, one way after the other."""
    vae = make_vae(dtype)
    decodes = {way: decode for way, decode in ways(vae).items() if way in chosen}
    z = latents(size, dtype)
    result: dict[str, dict[str, Any]] = {way: {"seconds": [], "cpu": []} for way in decodes}
    with torch.inference_mode():
        expected = ways(vae)["whole"](z).float()
        for decode in decodes.values():
            decode(latents(64, dtype))
        for _ in range(repeats):
            for way, decode in decodes.items():
                wall, cpu = time.perf_counter(), time.process_time()
                picture = decode(z)
                result[way]["seconds"].append(time.perf_counter() - wall)
                result[way]["cpu"].append(time.process_time() - cpu)
                result[way]["difference"] = (picture.float() - expected).abs().max().item()
    for figures in result.values():
        figures["std"] = expected.std().item()
    return result


def child(*arguments: str) -> Any:
    """Run this program again, for one measurement."""
    command = [sys.executable, __file__, *arguments]
    # Threads that spin while they wait take the cores from each other wherever there are more
    # threads than cores: then nothing is measured but that.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(run.stdout.splitlines()[-1])


def show(size: int, figures: dict[str, dict[str, Any]]) -> None:
    """Print a table's part for a size."""
    whole = figures.get("whole", {})
    for way, row in figures.items():
        line = f"{size:5} {way:9}"
        for unit in ("cpu", "seconds"):
            if row.get(unit):
                middle = statistics.median(row[unit])
                ratio = middle / statistics.median(whole[unit]) if whole.get(unit) else 0
                spread = f"{min(row[unit]):.1f} to {max(row[unit]):.1f}"
                line += f" | {unit} {middle:7.2f} ({ratio:.2f} x; {spread})"
        if "bytes" in row:
            ratio = row["bytes"] / whole["bytes"] if "bytes" in whole else 0
            line += f" | {row['bytes'] / 2**20:7.1f} MiB ({ratio:.3f} x)"
            line += f" {row['bytes'] / size**2:6.0f} B/px"
        if "predicted" in row:
            line += f" | predicted {row['predicted'] / row['bytes']:.2f} x"
        if "difference" in row:
            line += f" | worst {row['difference']:.1e} of std {row['std']:.2f}"
        print(line, flush=True)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--ways", nargs="+", default=["whole", "tiled", *(m.value for m in Mode)])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--skip", choices=("time", "memory"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=("time", "memory"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    dtype = getattr(torch, given.dtype)
    torch.set_num_threads(given.threads)
    if given.only == "memory":
        print(json.dumps(measure_memory(given.ways[0], given.sizes[0], dtype)))
        return
    if given.only == "time":
        print(json.dumps(measure_times(given.ways, given.sizes[0], dtype, given.repeats)))
        return
    common = ["--dtype", given.dtype, "--threads", str(given.threads)]
    result: dict[int, dict[str, dict[str, Any]]] = {}
    for size in given.sizes:
        here = [*common, "--sizes", str(size), "--repeats", str(given.repeats), "--ways"]
        figures: dict[str, dict[str, Any]] = {way: {} for way in given.ways}
        if given.skip != "time":
            figures = child("--only", "time", *here, *given.ways)
        if given.skip != "memory":
            for way in given.ways:
                figures[way] = child("--only", "memory", *here, way) | figures[way]
        show(size, figures)
        result[size] = figures
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
