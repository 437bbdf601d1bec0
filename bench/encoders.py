"""Encoding pictures: processor time, size, and for how long Python's other threads stand still.

Each encoder is measured by turns on three kinds of pictures: photographs, what a decoder with
random weights makes of random latents, and noise. Time is that of the encoding thread.
"""

from __future__ import annotations

import importlib.util
import io
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from darkroom_wire.jobs import Format
from darkroom_worker.decoding import to_pixels
from darkroom_worker.encoding.pictures import write_picture

from .statistics import Spread
from .vaes import NARROW, kl, random_latents

PHOTOGRAPHS = Path(__file__).parents[1] / "demo" / "photographs"
SIZE = 1024
QUALITY = 90
TICK = 0.0005

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Encode = Callable[[Pixels], bytes]


def run(*, quick: bool) -> dict[str, Any]:
    """Measure; quickly on one small picture of each kind."""
    kinds = pictures(64 if quick else SIZE, 1 if quick else None)
    encoders = {**DARKROOM, **others()}
    megapixels = {
        kind: sum(each[..., 0].size for each in found) / 1e6 for kind, found in kinds.items()
    }
    milliseconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    sizes: dict[tuple[str, str], int] = {}
    for _ in range(1 if quick else 5):
        for name, encode in encoders.items():
            for kind, found in kinds.items():
                began = time.thread_time()
                sizes[name, kind] = sum(len(encode(each)) for each in found)
                taken = 1000 * (time.thread_time() - began)
                milliseconds[name, kind].append(taken / megapixels[kind])
    return {
        "encoders": {
            name: {
                "longest_stall_milliseconds": round(1000 * stall(encode, kinds["decoded"]), 1),
                **{
                    kind: {
                        "milliseconds_a_megapixel": Spread.of(milliseconds[name, kind]).json(2),
                        "bytes_a_pixel": round(sizes[name, kind] / megapixels[kind] / 1e6, 3),
                    }
                    for kind in kinds
                },
            }
            for name, encode in encoders.items()
        }
    }


def pictures(size: int, most: int | None) -> dict[str, list[Pixels]]:
    """Make pictures of each kind, of about so many pixels a side or at most so many."""
    paths = sorted(PHOTOGRAPHS.glob("*.jpg"))[:most]
    photographs = [np.array(Image.open(path).convert("RGB")) for path in paths]
    with torch.inference_mode():
        decoded = kl(NARROW).decode(random_latents(size), return_dict=False)[0]
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return {
        "photographs": photographs,
        "decoded": [to_pixels(decoded)[0].numpy()],
        "noise": [noise],
    }


def stall(encode: Encode, found: list[Pixels]) -> float:
    """Find the longest time for which another thread could not run, in seconds."""
    over = threading.Event()
    longest = 0.0

    def tick() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not over.is_set():
            time.sleep(TICK)
            now = time.perf_counter()
            longest = max(longest, now - last - TICK)
            last = now

    thread = threading.Thread(target=tick)
    thread.start()
    for each in 5 * found:
        encode(each)
    over.set()
    thread.join()
    return longest


def _darkroom(chosen: Format) -> Encode:
    def encode(pixels: Pixels) -> bytes:
        file = io.BytesIO()
        write_picture(file, torch.from_numpy(pixels), chosen, QUALITY)
        return file.getvalue()

    return encode


def _pillow(kind: str, **parameters: int) -> Encode:
    def encode(pixels: Pixels) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind, **parameters)
        return file.getvalue()

    return encode


DARKROOM: Mapping[str, Encode] = {
    f"{each.value}, Darkroom": _darkroom(each) for each in (Format.PNG, Format.JPEG, Format.WEBP)
}


def others() -> dict[str, Encode]:
    """Name what else there is, of that what is installed."""
    found = {
        "png, Pillow level 1": _pillow("png", compress_level=1),
        "png, Pillow level 6": _pillow("png", compress_level=6),
        "webp, Pillow method 0": _pillow("webp", quality=QUALITY, method=0),
        "webp, Pillow method 4": _pillow("webp", quality=QUALITY, method=4),
    }
    if importlib.util.find_spec("cv2"):
        import cv2

        found["png, OpenCV level 1"] = lambda pixels: bytes(
            cv2.imencode(".png", pixels, (cv2.IMWRITE_PNG_COMPRESSION, 1))[1]
        )
        found["jpeg, OpenCV"] = lambda pixels: bytes(
            cv2.imencode(".jpg", pixels, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))[1]
        )
        found["webp, OpenCV"] = lambda pixels: bytes(
            cv2.imencode(".webp", pixels, (cv2.IMWRITE_WEBP_QUALITY, QUALITY))[1]
        )
    if importlib.util.find_spec("fpng_py"):
        import fpng_py

        found["png, fpng"] = lambda pixels: fpng_py.fpng_encode_image_to_memory(
            pixels.tobytes(), pixels.shape[1], pixels.shape[0], 3
        )
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        found["jpeg, simplejpeg"] = lambda pixels: simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels), QUALITY, colorsubsampling="420"
        )
    return found


KINDS = ("photographs", "decoded", "noise")


def table(result: Mapping[str, Any]) -> str:
    """Draw the figures as Markdown."""
    heads = [f"{kind}: ms a megapixel | bytes a pixel" for kind in KINDS]
    lines = [
        "| | " + " | ".join(heads) + " | longest stall |",
        "|---|" + "---|" * (2 * len(KINDS) + 1),
    ]
    for name, row in sorted(result["encoders"].items()):
        cells = []
        for kind in KINDS:
            cells.append(f"{row[kind]['milliseconds_a_megapixel']['p50']:.1f}")
            cells.append(f"{row[kind]['bytes_a_pixel']:.2f}")
        cells.append(f"{row['longest_stall_milliseconds']:.1f} ms")
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)
