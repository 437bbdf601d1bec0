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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from darkroom_worker import heap
from darkroom_worker.banded import BandedDecoder, Mode, TinyDecoder

from . import children
from .statistics import Spread
from .vaes import VAES, random_latents

WHOLE, TILED, BANDS = "diffusers, whole", "diffusers, tiled", "bands"
WAYS = {"kl-sd": (WHOLE, TILED, *(mode.value for mode in Mode)), "tiny": (WHOLE, BANDS)}
REPEATS = {256: 5, 512: 3, 1024: 3}
"""How often each way is measured at each size."""

EXPECTED = "expected.safetensors"

Decode = Callable[[Tensor], Tensor]
Predict = Callable[[tuple[int, ...]], int]


def run(*, quick: bool) -> dict[str, Any]:
    """Measure; quickly only one small size once."""
    return compare("kl-sd", {128: 1} if quick else REPEATS)


def compare(vae: str, repeats: Mapping[int, int]) -> dict[str, Any]:
    """Measure a VAE of `vaes` in its ways, so often at each size."""
    return {"sizes": {str(size): _size(vae, size, count) for size, count in repeats.items()}}


def _size(vae: str, size: int, repeats: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            for way in WAYS[vae]:
                runs[way].append(_child(way, vae, size, folder))
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
    line = children.last_line("decode", way, *arguments, as_worker=_is_ours(way))
    figures: dict[str, Any] = json.loads(line)
    return figures


def measure(way: str, name: str, size: int, folder: Path) -> dict[str, Any]:
    """Decode once, in this process. The first way leaves its picture in the folder."""
    if _is_ours(way):
        heap.prepare()  # as the worker does
    vae: Any = VAES[name]()
    del vae.encoder
    decode, predict = _ways(vae, way)
    latents = random_latents(size)
    with torch.inference_mode():
        decode(random_latents(64))
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
    return {
        "seconds": wall,
        "cpu_seconds": cpu,
        "bytes": peak,
        "predicted_bytes": predict(tuple(latents.shape)) if predict else None,
        "difference": (picture - expected).abs().max().item(),
        "standard_deviation": expected.std().item(),
    }


def _is_ours(way: str) -> bool:
    return way == BANDS or way in list(Mode)


def _ways(vae: Any, way: str) -> tuple[Decode, Predict | None]:
    """Give what decodes in a way, and what predicts its memory."""
    if way == BANDS:
        tiny = TinyDecoder(vae)
        return tiny.decode, tiny.predicted_bytes
    if way in list(Mode):
        banded, mode = BandedDecoder(vae), Mode(way)
        return partial(banded.decode, mode=mode), partial(banded.predicted_bytes, mode=mode)
    if way == TILED:
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = 256, 32
    return lambda z: vae.decode(z, return_dict=False)[0], None


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
        f"bands, `{way}`" if way in list(Mode) else way,
        f"{cpu:.2f} ({_brief(row['cpu_seconds']['p50'])})",
        f"{seconds:.2f} ({_brief(row['seconds']['p50'])})",
        f"{memory:.2f} ({taken / 1e6:,.0f} MB, {taken / size**2:,.0f} bytes a pixel)",
        f"{predicted / taken:.2f} of it" if predicted else "",
        f"{row['difference']:.1e} of std {row['standard_deviation']:.2f}",
    )
    return "| " + " | ".join(cells) + " |"


def _brief(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def main() -> None:
    """Measure one way, for the parent process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way")
    parser.add_argument("vae")
    parser.add_argument("size", type=int)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    print(json.dumps(measure(given.way, given.vae, given.size, given.folder)))


if __name__ == "__main__":
    main()
