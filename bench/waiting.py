"""Clients that wait for jobs: `python -m bench.waiting COUNT URL…` until it is ended.

At each address one job is submitted for every client, which then waits for it again and again.
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
import uvloop

from .clients import get, latents, session, submit


async def main(count: int, urls: list[str]) -> None:
    """Say "waiting" once every client waits."""
    body = latents(1, 4, 8, 8)
    async with asyncio.TaskGroup() as group:
        for url in urls:
            http = session(url, count)
            for _ in range(count):
                job = await submit(http, body, vae="demo")
                group.create_task(_wait(http, job))
        await asyncio.sleep(1)
        sys.stdout.write("waiting\n")
        sys.stdout.flush()


async def _wait(http: aiohttp.ClientSession, job: str) -> None:
    while True:
        await get(http, f"/v1/jobs/{job}", wait="60")


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2:]))
