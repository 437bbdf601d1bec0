"""The main job on real input: photographs' latents in, pictures out, compared with the photographs.

Starts the embedded stack, submits every file of `demo/latents` as a concurrent job through the
public API, compares each picture with its photograph, and draws a contact sheet.

    python demo/run.py [--out DIR]
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from darkroom import Client, DarkroomError

HERE = Path(__file__).parent
LEAST_PSNR = 20.0
"""Decibels that every picture has to reach; a wrong scale or channel order gives below 15."""

START_SECONDS = 120
STOP_SECONDS = 20
TILE = 200
COLUMNS = 4
MARGIN = 8
CAPTION = 16


@dataclass(frozen=True)
class Developed:
    """A photograph and the picture that came back."""

    name: str
    photograph: Image.Image
    picture: Image.Image

    @property
    def psnr(self) -> float:
        """The peak signal-to-noise ratio in decibels, over all channels of 8-bit pixels."""
        error = np.asarray(self.photograph, float) - np.asarray(self.picture, float)
        return 20 * math.log10(255) - 10 * math.log10(max(float((error**2).mean()), 1e-9))


def main() -> int:
    """Run the demo; 0 if every picture came back as it should."""
    parser = argparse.ArgumentParser(description="The main job on real input.")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where pictures are put")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        with embedded_stack() as url:
            print(f"the stack runs after {time.monotonic() - started:.0f} s at {url}")
            developed = develop(url, sorted((HERE / "latents").glob("*.safetensors")), out)
    except (StackError, DarkroomError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return report(developed, out, time.monotonic() - started)


class StackError(Exception):
    """The embedded stack did not start."""


@contextmanager
def embedded_stack() -> Iterator[str]:
    """Run `darkroom up` on a data folder of its own, and give the API's address."""
    with tempfile.TemporaryDirectory(prefix="darkroom-demo-") as data:
        command = [sys.executable, "-m", "darkroom", "up", "--data", data]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            yield await_address(process, Path(data) / "addresses.json")
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


def await_address(process: subprocess.Popen[bytes], addresses: Path) -> str:
    """Wait until the stack has written where it is."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if addresses.exists() and (text := addresses.read_text()):
            return str(json.loads(text)["api"])
        time.sleep(0.1)
    raise StackError("the embedded stack did not start; its message stands above")


def develop(url: str, latents: list[Path], out: Path) -> list[Developed]:
    """Have every file decoded, and save the pictures."""
    with Client(url) as client:
        jobs = client.submit_many(latents, vae="demo")
        names = {job.id: path.stem for job, path in zip(jobs, latents, strict=True)}
        developed = []
        for job in client.as_completed(jobs, progress=True):
            name = names[job.id]
            picture = job.result()
            picture.save(out / f"{name}.png")
            photograph = Image.open(HERE / "photographs" / f"{name}.jpg").convert("RGB")
            developed.append(Developed(name, photograph, picture))
    return sorted(developed, key=lambda each: each.name)


def report(developed: list[Developed], out: Path, seconds: float) -> int:
    """Print how close each picture came, draw the contact sheet, and judge."""
    for each in developed:
        width, height = each.picture.size
        verdict = "" if each.psnr >= LEAST_PSNR else "   <-- too far from the photograph"
        print(f"  {each.name:<14} {width:>4} x {height:<4} {each.psnr:5.1f} dB{verdict}")
    sheet = out / "contact-sheet.png"
    contact_sheet(developed).save(sheet)
    mean = sum(each.psnr for each in developed) / len(developed)
    print(f"{len(developed)} pictures, {mean:.1f} dB on average, {seconds:.0f} s in all")
    print(f"pictures:      {out}\ncontact sheet: {sheet}")
    return 0 if all(each.psnr >= LEAST_PSNR for each in developed) else 1


def contact_sheet(developed: list[Developed]) -> Image.Image:
    """Draw each photograph beside its picture."""
    cell = (2 * TILE + 2 * MARGIN, TILE + CAPTION + MARGIN)
    rows = math.ceil(len(developed) / COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for index, each in enumerate(developed):
        left = MARGIN + index % COLUMNS * cell[0]
        top = MARGIN + index // COLUMNS * cell[1]
        for offset, image in ((0, each.photograph), (TILE + MARGIN // 2, each.picture)):
            tile = image.copy()
            tile.thumbnail((TILE, TILE))
            sheet.paste(tile, (left + offset, top))
        draw.text((left, top + TILE + 2), f"{each.name}  {each.psnr:.1f} dB", fill="black")
    return sheet


if __name__ == "__main__":
    sys.exit(main())
