"""Decoding one picture: time, memory and the largest difference, against diffusers' own decodes.

Each decode runs in a process of its own, the ways by turns. Memory is the peak of a process's
resident memory over what it was with the model loaded and a tiny decode done. The threads wait for
each other as PyTorch's do by default, spinning: run this where nothing else runs. CPU seconds are
told beside those on the clock; those of threads that spin are among them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from darkroom_worker import heap
from darkroom_worker.banded import BandedDecoder, Mode

from . import children
from .statistics import Spread
from .vaes import kl, random_latents

WHOLE, TILED = "diffusers, whole", "diffusers, tiled"
WAYS = (WHOLE, TILED, *(mode.value for mode in Mode))
REPEATS = {256: 5, 512: 3, 1024: 3}
"""How often each way is measured at each size."""

EXPECTED = "expected.safetensors"

Decode = Callable[[Tensor], Tensor]


def run(*, quick: bool, repeats: Mapping[int, int] = REPEATS) -> dict[str, Any]:
    """Measure; quickly only one small size once."""
    sizes = {128: 1} if quick else repeats
    return {"sizes": {str(size): _size(size, count, "float32") for size, count in sizes.items()}}


def _size(size: int, repeats: int, dtype: str) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for way in WAYS:
                runs[way].append(_child(way, size, dtype, folder))
    return {way: _summary(found) for way, found in runs.items()}


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    units = ("cpu_seconds", "seconds", "bytes")
    return {
        **{unit: Spread.of([each[unit] for each in runs]).json() for unit in units},
        "predicted_bytes": runs[0]["predicted_bytes"],
        "difference": max(each["difference"] for each in runs),
        "standard_deviation": runs[0]["standard_deviation"],
    }


def _child(way: str, *arguments: object) -> dict[str, Any]:
    """Run one decode in a process of its own."""
    line = children.last_line("decode", way, *arguments, as_worker=way in list(Mode))
    figures: dict[str, Any] = json.loads(line)
    return figures


def measure(way: str, size: int, dtype: torch.dtype, folder: Path) -> dict[str, Any]:
    """Decode once, in this process. The first way leaves its picture in the folder."""
    if way in list(Mode):
        heap.prepare()  # as the worker does
    vae = kl(dtype=dtype)
    del vae.encoder
    decode = _decode(vae, way)
    latents = random_latents(size, dtype)
    with torch.inference_mode():
        decode(random_latents(64, dtype))
        heap.trim()
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        wall, cpu = time.perf_counter(), time.process_time()
        picture = decode(latents)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resident("VmHWM") - before
    if not (folder / EXPECTED).exists():
        save_file({"picture": picture}, folder / EXPECTED)
    expected = load_file(folder / EXPECTED)["picture"]
    predicted = None
    if way in list(Mode):
        predicted = BandedDecoder(vae).predicted_bytes(tuple(latents.shape), Mode(way))
    return {
        "seconds": wall,
        "cpu_seconds": cpu,
        "bytes": peak,
        "predicted_bytes": predicted,
        "difference": (picture.float() - expected.float()).abs().max().item(),
        "standard_deviation": expected.float().std().item(),
    }


def _decode(vae: AutoencoderKL, way: str) -> Decode:
    if way in list(Mode):
        banded = BandedDecoder(vae)
        return lambda z: banded.decode(z, Mode(way))
    if way == TILED:
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = 256, 32
    return lambda z: vae.decode(z, return_dict=False)[0]


def resident(field: str) -> int:
    """Read a figure of this process from Linux, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def table(result: Mapping[str, Any]) -> str:
    """Draw the figures as Markdown."""
    lines = []
    for size, ways in result["sizes"].items():
        count = ways[WHOLE]["seconds"]["count"]
        lines += [
            f"| {size} x {size}, median of {count} | CPU time | time | peak memory | predicted "
            "| worst difference |",
            "|---|---|---|---|---|---|",
            *(_row(way, row, ways[WHOLE], int(size)) for way, row in ways.items()),
            "",
        ]
    return "\n".join(lines).strip()


def _row(way: str, row: Mapping[str, Any], whole: Mapping[str, Any], size: int) -> str:
    cpu, seconds, memory = (
        row[unit]["p50"] / whole[unit]["p50"] for unit in ("cpu_seconds", "seconds", "bytes")
    )
    taken = row["bytes"]["p50"]
    predicted = row["predicted_bytes"]
    cells = (
        way if "," in way else f"bands, `{way}`",
        f"{cpu:.2f} ({row['cpu_seconds']['p50']:.1f} s)",
        f"{seconds:.2f} ({row['seconds']['p50']:.1f} s)",
        f"{memory:.2f} ({taken / 1e6:,.0f} MB, {taken / size**2:,.0f} bytes a pixel)",
        f"{predicted / taken:.2f} of it" if predicted else "",
        f"{row['difference']:.1e} of std {row['standard_deviation']:.2f}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure one way, for the parent process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way")
    parser.add_argument("size", type=int)
    parser.add_argument("dtype")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    print(json.dumps(measure(given.way, given.size, getattr(torch, given.dtype), given.folder)))


if __name__ == "__main__":
    main()
