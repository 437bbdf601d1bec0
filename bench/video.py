"""Decoding one video: time and memory against the number of frames, beside diffusers' own decode.

Each decode runs in a process of its own. Memory is the peak of a process's resident memory over
what it was with the model loaded and a tiny decode done. The VAEs have their real sizes and seeded
random weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLQwenImage, AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from darkroom_worker import heap
from darkroom_worker.banded import BandedDecoder, Mode
from darkroom_worker.streamed import ExactDecoder, Order, StreamedDecoder

from . import children
from .decode import EXPECTED, resident

WHOLE, TILES = "diffusers, whole", "diffusers, tiles along time"
BANDS = {f"bands, `{mode.value}`": mode for mode in Mode}
STREAMS = {f"streamed, `{order.value}`": order for order in Order}
OURS: dict[str, StrEnum] = {**BANDS, **STREAMS}
CHANNELS, SPACE, TIME = 16, 8, 4
"""Of latents, and how many times smaller and shorter they are: the first frame is one by itself."""


@dataclass(frozen=True)
class Model:
    """A VAE, and the ways in which it decodes."""

    title: str
    make: Callable[[], nn.Module]
    ways: tuple[str, ...]


MODELS = {
    "wan": Model("Wan 2.1", AutoencoderKLWan, (WHOLE, *STREAMS)),
    "qwen": Model("Qwen-Image", AutoencoderKLQwenImage, (WHOLE, *STREAMS)),
    "hunyuan": Model("HunyuanVideo", AutoencoderKLHunyuanVideo, (WHOLE, TILES, *BANDS)),
}

Work = tuple[str, int, int]
"""A model, the side of its frames in pixels, and how many."""

WORK: tuple[Work, ...] = (
    *(("wan", 128, count) for count in (5, 17, 33)),
    ("wan", 256, 9),
    ("qwen", 1024, 1),
    *(("hunyuan", 128, count) for count in (5, 17, 33)),
)
QUICK: tuple[Work, ...] = tuple((model, 32, 5) for model in MODELS)


def run(*, quick: bool) -> dict[str, Any]:
    """Measure; quickly only small videos."""
    videos = [
        {"model": model, "side": side, "frames": count, "ways": _ways(model, side, count)}
        for model, side, count in (QUICK if quick else WORK)
    ]
    return {"videos": videos}


def _ways(model: str, side: int, frames: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return {way: _child(model, way, side, frames, folder) for way in MODELS[model].ways}


def _child(model: str, way: str, *arguments: object) -> dict[str, Any]:
    """Decode once in a process of its own."""
    line = children.last_line("video", model, way, *arguments, as_worker=way in OURS)
    figures: dict[str, Any] = json.loads(line)
    return figures


def measure(model: str, way: str, side: int, frames: int, folder: Path) -> dict[str, Any]:
    """Decode once, in this process. The first way leaves its video in the folder."""
    if way in OURS:
        heap.prepare()  # as the worker does
    torch.manual_seed(0)
    vae: Any = MODELS[model].make().eval()
    vae.encoder.to("meta")  # its memory is none of a decode
    exact = _exact(vae, way)
    latents = torch.randn(1, CHANNELS, 1 + (frames - 1) // TIME, side // SPACE, side // SPACE)

    def decode(z: Tensor) -> Tensor:
        if exact is not None:
            return exact.decode(z, OURS[way], lambda: None)
        decoded: Tensor = vae.decode(z, return_dict=False)[0]
        return decoded

    with torch.inference_mode():
        decode(latents[:, :, :2, :4, :4])
        heap.trim()
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        wall, cpu = time.perf_counter(), time.process_time()
        video = decode(latents)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resident("VmHWM") - before
    if not (folder / EXPECTED).exists():
        save_file({"video": video}, folder / EXPECTED)
    expected = load_file(folder / EXPECTED)["video"]
    shape, predicted = tuple(latents.shape), None
    if exact is not None:
        predicted = exact.predicted_bytes(shape, OURS[way])
    return {
        "seconds": wall,
        "cpu_seconds": cpu,
        "bytes": peak,
        "predicted_bytes": predicted,
        "video_bytes": video.nbytes,
        "difference": ((video - expected).abs().max() / expected.std()).item(),
    }


def _exact(vae: Any, way: str) -> ExactDecoder[Any] | None:
    if way in STREAMS:
        return StreamedDecoder(vae)
    if way in (WHOLE, *BANDS) and hasattr(vae, "use_framewise_decoding"):
        vae.use_framewise_decoding = False
    return BandedDecoder(vae) if way in BANDS else None


def table(result: Mapping[str, Any]) -> str:
    """Draw the figures as Markdown."""
    lines = [
        "| | CPU time | time | peak memory | predicted | worst difference, in deviations |",
        "|---|---|---|---|---|---|",
    ]
    for video in result["videos"]:
        title, side = MODELS[video["model"]].title, video["side"]
        for way, row in video["ways"].items():
            count = f"{video['frames']} frame{'s' * (video['frames'] > 1)}"
            work = f"{title}, {count} of {side} x {side}, {way}"
            lines.append(_row(work, row, video["ways"][WHOLE]))
    return "\n".join(lines)


def _row(work: str, row: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    predicted = row["predicted_bytes"]
    cpu, seconds, taken = (row[unit] / whole[unit] for unit in ("cpu_seconds", "seconds", "bytes"))
    cells = (
        work,
        f"{cpu:.2f} ({row['cpu_seconds']:.1f} s)",
        f"{seconds:.2f} ({row['seconds']:.1f} s)",
        f"{taken:.2f} ({row['bytes'] / 1e6:,.0f} MB)",
        f"{predicted / row['bytes']:.2f} of it" if predicted else "",
        f"{row['difference']:.1e}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure one way, for the parent process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("way")
    parser.add_argument("side", type=int)
    parser.add_argument("frames", type=int)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    print(json.dumps(measure(given.model, given.way, given.side, given.frames, given.folder)))


if __name__ == "__main__":
    main()
