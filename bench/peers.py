"""Submit latents, get the picture: Darkroom and its peers, with one client and with many.

All run at once and are measured by turns; those that wait use no processor time to speak of. Every
one decodes the same VAE on all cores in one process. Darkroom and the plain Celery task keep what
they are given and what they make in S3; the others keep nothing.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from . import vaes
from .clients import Measured, latents, measure
from .contenders import PEERS, Contender, darkroom
from .installation import installed
from .statistics import Spread

SIZE = 256
BODY = latents(1, 4, SIZE // 8, SIZE // 8)
CLIENTS = (1, 8, 64)
MEASURED = ("kl-small", "tiny")


def run(*, quick: bool) -> dict[str, Any]:
    """Measure; quickly only a few pictures of one VAE."""
    rounds, each, measured = (1, 1, MEASURED[-1:]) if quick else (3, 2, MEASURED)
    return {"size": SIZE, "vaes": {vae: uvloop.run(_run(vae, rounds, each)) for vae in measured}}


async def _run(vae: str, rounds: int, each: int) -> dict[str, Any]:
    """Measure each contender with each number of clients, so many pictures for each client."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max(CLIENTS)))
    turns: dict[tuple[str, int], list[Measured]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name, installed() as installation:
        folder = Path(name)
        site = installation.site(0, catalog=str(vaes.save(folder)))
        contenders = [darkroom(site, vae), *(start(installation, folder / vae) for start in PEERS)]
        for contender in contenders:
            await _measure(contender, 2, 2)
        for _ in range(rounds):
            for clients in CLIENTS:
                for contender in random.sample(contenders, len(contenders)):
                    count = max(16, clients) * each
                    turn = await _measure(contender, count, clients)
                    turns[contender.name, clients].append(turn)
    return {
        contender.name: {
            str(clients): _summary(turns[contender.name, clients]) for clients in CLIENTS
        }
        for contender in contenders
    }


async def _measure(contender: Contender, count: int, clients: int) -> Measured:
    timeout = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        return await measure(lambda _: contender.picture(http, BODY), count, clients)


def _summary(turns: list[Measured]) -> dict[str, Any]:
    return {
        "per_second": Spread.of([turn.rate for turn in turns]).json(2),
        "seconds": Spread.of([seconds for turn in turns for seconds in turn.seconds]).json(),
    }


def table(result: Mapping[str, Any]) -> str:
    """Draw the figures as Markdown."""
    lines = []
    for vae, rows in result["vaes"].items():
        heads = [f"{count} clients: a second | p50" for count in CLIENTS]
        lines += [
            f"`{vae}`, {result['size']} x {result['size']}; ratios are to Darkroom:",
            "",
            "| | " + " | ".join(heads) + " |",
            "|---|" + "---|" * 2 * len(CLIENTS),
        ]
        own = next(iter(rows.values()))
        for name, row in rows.items():
            lines.append("| " + " | ".join([name, *_cells(row, own)]) + " |")
        lines.append("")
    return "\n".join(lines).strip()


def _cells(row: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    cells = []
    for clients in map(str, CLIENTS):
        rate, mine = (each[clients]["per_second"]["p50"] for each in (row, own))
        cells.append(f"{rate:.1f} ({rate / mine:.2f} x)")
        cells.append(f"{1000 * row[clients]['seconds']['p50']:.0f} ms")
    return cells
