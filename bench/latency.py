"""From submission to result on an idle service, and what each part of that takes.

One client submits one job after the other and waits for each. The VAE is small, for what is looked
at is everything but decoding.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from . import vaes
from .clients import OCTETS, latents, session
from .installation import installed
from .statistics import Spread

VAE = "tiny"
BODY = latents(1, 4, 64, 64)
"""64 KiB: a picture of 512 x 512."""

STEPS = ("queued", "fetch", "decode", "encode", "store")
"""What the job's document tells in its `timings`."""


def run(*, quick: bool) -> dict[str, Any]:
    """Measure; quickly only a few jobs."""
    return uvloop.run(_run(10 if quick else 200))


async def _run(count: int) -> dict[str, Any]:
    parts: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, installed() as installation:
        catalog = vaes.save(Path(folder))
        site = installation.site(0, catalog=str(catalog))
        site.start_api()
        site.start_worker()
        async with session(site.url, 1) as http, aiohttp.ClientSession() as store:
            for number in range(count + 10):
                measured = await _one(http, store)
                if number >= 10:  # the first ones load the VAE and open connections
                    for part, milliseconds in measured.items():
                        parts[part].append(milliseconds)
    return {part: Spread.of(values).json(2) for part, values in parts.items()}


async def _one(http: aiohttp.ClientSession, store: aiohttp.ClientSession) -> dict[str, float]:
    """Do one job; give the milliseconds of each part."""
    began = time.perf_counter()
    options = {"vae": VAE}
    headers = {**OCTETS, "Prefer": "wait=60"}
    async with http.post("/v1/jobs", params=options, data=BODY, headers=headers) as answer:
        job = await answer.json()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {job}")
    known = time.perf_counter()
    async with store.get(job["outputs"][0]["url"]) as picture:
        picture.raise_for_status()
        await picture.read()
    ended = time.perf_counter()
    timings = {step: float(job["timings"][step]) for step in STEPS}
    total = 1000 * (ended - began)
    fetched = 1000 * (ended - known)
    return {
        "total": total,
        "beyond decoding": total - timings["decode"],
        "accepting, committing and telling": total - fetched - sum(timings.values()),
        **timings,
        "reading the picture": fetched,
    }


NAMES = {
    "total": "from submission to picture",
    "beyond decoding": "of these, all but decoding",
    "queued": "from the record to a worker's claim",
    "fetch": "reading the latents from S3",
    "decode": "decoding (not counted)",
    "encode": "PNG",
    "store": "writing the picture to S3",
}


def table(result: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw the figures as Markdown."""
    lines = ["| milliseconds | p50 | p99 |", "|---|---|---|"]
    for part, row in result.items():
        if part != "environment":
            lines.append(f"| {NAMES.get(part, part)} | {row['p50']:.1f} | {row['p99']:.1f} |")
    return "\n".join(lines)
