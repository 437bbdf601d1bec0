"""Decoding one video: memory against the number of frames, beside diffusers' own decode.

Each decode runs in a process of its own. Memory is the peak of a process's resident memory over
what it was with the model loaded and a tiny decode done. `python -m bench.video [SIDE FRAMES …]`
prints a table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from darkroom_worker import heap
from darkroom_worker.streamed import FrameStream

from .decode import resident

WHOLE, STREAMED = "diffusers, whole", "streamed"
SIDE = 128
FRAMES = (5, 17, 33)
"""Frames of a video, of which a latent frame makes the first, and every further one four."""

CHANNELS, SPACE, TIME = 16, 8, 4
"""Of the latents, and how many times smaller and shorter they are."""


def measure(way: str, side: int, frames: int) -> dict[str, Any]:
    """Decode once, in this process, with a VAE of Wan 2.1's size and random weights."""
    heap.give_back_large()  # as the worker does
    torch.manual_seed(0)
    vae = AutoencoderKLWan().eval()
    stream = FrameStream(vae)
    shape = (1, CHANNELS, 1 + (frames - 1) // TIME, side // SPACE, side // SPACE)
    latents = torch.randn(shape)

    def decode(z: Tensor) -> Tensor:
        if way == STREAMED:
            return stream.decode(z)
        decoded: Tensor = vae.decode(z, return_dict=False)[0]
        return decoded

    with torch.inference_mode():
        decode(latents[:, :, :2, :4, :4])
        heap.trim()
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        cpu = time.process_time()
        video = decode(latents)
        cpu = time.process_time() - cpu
        peak = resident("VmHWM") - before
    return {
        "cpu_seconds": cpu,
        "bytes": peak,
        "predicted_bytes": stream.predicted_bytes(shape) if way == STREAMED else None,
        "video_bytes": video.nbytes,
    }


def row(way: str, side: int, frames: int) -> str:
    """Measure in a process of its own, and draw a row of the table."""
    command = [sys.executable, "-m", "bench.video", way, str(side), str(frames)]
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    predicted = found["predicted_bytes"]
    told = "" if predicted is None else f"{predicted / 1e6:.0f} MB"
    return (
        f"| {side} x {side} | {frames} | {way} | {found['bytes'] / 1e6:.0f} MB | {told} "
        f"| {found['video_bytes'] / 1e6:.1f} MB | {found['cpu_seconds']:.1f} s |"
    )


def main(arguments: Sequence[str]) -> None:
    """Measure one way, or print the table of both."""
    if len(arguments) == 3 and arguments[0] in (WHOLE, STREAMED):
        print(json.dumps(measure(arguments[0], int(arguments[1]), int(arguments[2]))))
        return
    side, *lengths = [int(each) for each in arguments] or [SIDE, *FRAMES]
    print("| size | frames | way | peak memory | predicted | the video | CPU time |")
    print("|---|---|---|---|---|---|---|")
    for frames in lengths:
        for way in (STREAMED, WHOLE):
            print(row(way, side, frames), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
