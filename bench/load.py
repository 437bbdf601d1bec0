"""Submission, status and listing: how fast, what each part costs, and what a backlog changes.

Four sites run side by side: one is idle, one has a backlog of queued jobs, one has clients that
wait for jobs, one has both. They are measured by turns, a slice at a time, so that what else the
machine does meets all of them. No worker runs: what is queued stays queued.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import aiohttp
import uvloop
from redis import Redis

from .clients import Measured, get, latents, measure, session, submit
from .installation import Site, installed
from .statistics import Spread

BODY = latents(1, 4, 64, 64)
"""64 KiB: a picture of 512 x 512."""

CLIENTS = 16
CHUNKS = 10
PARTS = ("API", "Valkey", "SeaweedFS", "this client")
CONDITIONS = {
    "idle": (False, False),
    "backlog": (True, False),
    "waiting": (False, True),
    "both": (True, True),
}
WORK = ("submit", "status", "list")


def run(*, quick: bool) -> dict[str, Any]:
    """Measure; quickly with a hundredth of the work, to see that it can be."""
    backlog, waiting, slices = (100, 20, 2) if quick else (10_000, 500, 12)
    return uvloop.run(_run(backlog, waiting, slices))


async def _run(backlog: int, waiting: int, slices: int) -> dict[str, Any]:
    with installed() as installation:
        sites = {
            name: installation.site(number, max_queued=str(2 * backlog + 100_000))
            for number, name in enumerate(CONDITIONS)
        }
        rates = await _rates(sites["idle"], slices)
        for name in ("backlog", "waiting", "both"):
            sites[name].start_api()
        filled = {
            name: await _fill(sites[name], backlog // CHUNKS)
            for name, (is_long, _) in CONDITIONS.items()
            if is_long
        }
        with _waiting_clients(sites, waiting):
            latencies = await _by_turns(sites, slices)
    return {
        "backlog": backlog,
        "waiting": waiting,
        "rates": rates,
        "filling": filled["backlog"],
        "milliseconds": {
            work: {name: Spread.of(values).json() for name, values in by_site.items()}
            for work, by_site in latencies.items()
        },
    }


async def _rates(site: Site, slices: int) -> dict[str, Any]:
    """Measure how many requests a second one API answers, and what each part's share is."""
    site.start_api()
    result = {}
    async with session(site.url, CLIENTS) as http:
        known = [await submit(http, BODY, vae="demo") for _ in range(100)]
        requests = {
            "submit": lambda _: submit(http, BODY, vae="demo"),
            "status": lambda number: get(http, f"/v1/jobs/{known[number % len(known)]}"),
            "list": lambda _: get(http, "/v1/jobs", limit="50"),
        }
        for work, request in requests.items():
            await measure(request, 50, CLIENTS)
            before = site.cpu_seconds()
            turns = [await measure(request, 300, CLIENTS) for _ in range(slices)]
            after = site.cpu_seconds()
            count = sum(len(turn.seconds) for turn in turns)
            result[work] = {
                "clients": CLIENTS,
                "per_second": Spread.of([turn.rate for turn in turns]).json(1),
                "cpu_milliseconds": {
                    part: round(1000 * (after[part] - before[part]) / count, 3) for part in PARTS
                },
            }
    return result


async def _fill(site: Site, chunk: int) -> list[dict[str, float]]:
    """Submit a backlog; tell at each part of it the rate, and what a queued job costs Redis."""
    redis = Redis.from_url(site.environment["DARKROOM_REDIS_URL"])
    empty = redis.info("memory")["used_memory"]
    grown = []
    async with session(site.url, CLIENTS) as http:
        for part in range(1, CHUNKS + 1):
            filled = await measure(lambda _: submit(http, BODY, vae="demo"), chunk, CLIENTS)
            bytes_ = (redis.info("memory")["used_memory"] - empty) / (part * chunk)
            grown.append(
                {
                    "queued": part * chunk,
                    "submissions_per_second": round(filled.rate, 1),
                    "redis_bytes_per_job": round(bytes_),
                }
            )
    redis.close()
    return grown


@contextmanager
def _waiting_clients(sites: Mapping[str, Site], count: int) -> Iterator[None]:
    """Have clients of another process wait for jobs that do not end."""
    command = [sys.executable, "-m", "bench.waiting", str(count)]
    urls = [sites[name].url for name, (_, is_awaited) in CONDITIONS.items() if is_awaited]
    with subprocess.Popen([*command, *urls], stdout=subprocess.PIPE) as process:
        try:
            if process.stdout is None or process.stdout.readline() != b"waiting\n":
                raise RuntimeError("the waiting clients did not begin")
            yield
        finally:
            process.terminate()


async def _by_turns(sites: Mapping[str, Site], slices: int) -> dict[str, dict[str, list[float]]]:
    """Measure the latency for a single client, in milliseconds."""
    seconds: dict[str, dict[str, list[float]]] = {
        work: {name: [] for name in sites} for work in WORK
    }
    for _ in range(slices):
        for name in random.sample(list(sites), len(sites)):
            async with session(sites[name].url, 1) as http:
                job = await submit(http, BODY, vae="demo")
                for work, measured in (await _slice(http, job)).items():
                    seconds[work][name] += [1000 * each for each in measured.seconds]
    return seconds


async def _slice(http: aiohttp.ClientSession, job: str) -> dict[str, Measured]:
    return {
        "submit": await measure(lambda _: submit(http, BODY, vae="demo"), 40, 1),
        "status": await measure(lambda _: get(http, f"/v1/jobs/{job}"), 80, 1),
        "list": await measure(lambda _: get(http, "/v1/jobs", limit="50"), 40, 1),
    }


def table(result: Mapping[str, Any]) -> str:
    """Draw the figures as Markdown."""
    lines = [
        f"One API process, {CLIENTS} clients, latents of 64 KiB, an empty queue:",
        "",
        "| | a second | CPU ms: " + " | ".join(PARTS) + " |",
        "|---|---|" + "---|" * len(PARTS),
    ]
    for work, row in result["rates"].items():
        rate = row["per_second"]
        shares = " | ".join(f"{row['cpu_milliseconds'][part]:.2f}" for part in PARTS)
        lines.append(
            f"| {work} | {rate['p50']:.0f} ({rate['least']:.0f} to {rate['most']:.0f}) | {shares} |"
        )
    lines += [
        "",
        f"One client at a time beside {result['backlog']:,} queued jobs, {result['waiting']} "
        "clients that wait for a job, or both; milliseconds, and the ratio to the idle service:",
        "",
        "| | idle | backlog | waiting | both |",
        "|---|---|---|---|---|",
    ]
    for work, by_site in result["milliseconds"].items():
        for which in ("p50", "p99"):
            idle = by_site["idle"][which]
            cells = " | ".join(
                f"{by_site[name][which]:.1f} ({by_site[name][which] / idle:.2f} x)"
                for name in ("backlog", "waiting", "both")
            )
            lines.append(f"| {work}, {which} | {idle:.1f} | {cells} |")
    filling = result["filling"]
    first, last = filling[0], filling[-1]
    lines += [
        "",
        f"The backlog grew by {first['submissions_per_second']:.0f} jobs a second at first and by "
        f"{last['submissions_per_second']:.0f} at last; each of {last['queued']:,} queued jobs "
        f"takes {last['redis_bytes_per_job']:,} bytes of Redis.",
    ]
    return "\n".join(lines)
