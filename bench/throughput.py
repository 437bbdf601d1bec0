"""A queue of 64 jobs: Darkroom against a bare loop of its own decode, and against plain Celery.

The bare loop decodes in one process and keeps nothing; Darkroom and the Celery task also read
latents from S3, make PNG files and store them. Measured by turns.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from . import children, vaes
from .clients import latents, measure
from .contenders import Contender, darkroom, plain_celery
from .installation import installed
from .statistics import Spread

JOBS = 64
BARE = "bare loop"

WORK = (("kl-sd", 256, 16), ("tiny", 256, 64), ("tiny", 64, 512))
"""VAEs, the side of a picture in pixels, and how many pictures the bare loop makes.

The last hardly decodes: there everything else is measured.
"""


def run(*, quick: bool) -> dict[str, Any]:
    """Measure; quickly only with the small VAE."""
    work, rounds, jobs = ((("tiny", 64, 8),), 1, 8) if quick else (WORK, 3, JOBS)
    return {
        "jobs": jobs,
        "work": [
            {
                "vae": vae,
                "size": size,
                "per_second": uvloop.run(_run(vae, size, count, rounds, jobs)),
            }
            for vae, size, count in work
        ],
    }


async def _run(vae: str, size: int, count: int, rounds: int, jobs: int) -> dict[str, Any]:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(jobs))
    rates: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name, installed() as installation:
        folder = Path(name)
        catalog = vaes.save(folder)
        site = installation.site(0, catalog=str(catalog))
        contenders = [darkroom(site, vae), plain_celery(installation, folder / vae)]
        for contender in contenders:
            await rate(contender, size, 1)
        for _ in range(rounds):
            rates[BARE].append(bare(catalog, vae, size, count))
            for contender in contenders:
                rates[contender.name].append(await rate(contender, size, jobs))
    return {name: Spread.of(found).json() for name, found in rates.items()}


async def rate(contender: Contender, size: int, jobs: int) -> float:
    """Submit all jobs at once, and wait for all pictures."""
    body = latents(1, 4, size // 8, size // 8)
    timeout = aiohttp.ClientTimeout(total=3600)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        return (await measure(lambda _: contender.picture(http, body), jobs, jobs)).rate


def bare(catalog: Path, vae: str, size: int, count: int, *where: str) -> float:
    """Decode in a process of its own, on a device and in a dtype; count pictures a second."""
    return float(children.last_line("bare", catalog, vae, size, count, *where, as_worker=True))


def table(result: Mapping[str, Any]) -> str:
    """Draw the figures as Markdown."""
    lines = [f"| {result['jobs']} jobs | pictures a second | to the bare loop |", "|---|---|---|"]
    for row in result["work"]:
        rates = row["per_second"]
        for name, found in rates.items():
            ratio = found["p50"] / rates[BARE]["p50"]
            spread = f"{found['least']:.2f} to {found['most']:.2f}"
            work = f"`{row['vae']}` {row['size']} x {row['size']}, {name}"
            lines.append(f"| {work} | {found['p50']:.2f} ({spread}) | {ratio:.2f} |")
    return "\n".join(lines)
