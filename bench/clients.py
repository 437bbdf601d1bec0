"""HTTP clients that measure: so many requests, so many of them at once."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import aiohttp
import numpy as np

from darkroom_wire.tensors import from_raw, to_safetensors

OCTETS = {"Content-Type": "application/octet-stream"}
"""The content type of a safetensors file."""


@dataclass(frozen=True)
class Measured:
    """The seconds that each request took, and all of them together."""

    seconds: Sequence[float]
    elapsed: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.seconds) / self.elapsed


def session(url: str, connections: int) -> aiohttp.ClientSession:
    """Open a session that keeps so many connections to one address."""
    return aiohttp.ClientSession(
        url,
        connector=aiohttp.TCPConnector(limit=connections),
        timeout=aiohttp.ClientTimeout(total=600),
    )


async def measure(
    request: Callable[[int], Awaitable[object]], count: int, at_once: int
) -> Measured:
    """Make requests, each told its number, and take the time of each."""
    numbers = itertools.count()
    seconds: list[float] = []

    async def client() -> None:
        while (number := next(numbers)) < count:
            began = time.perf_counter()
            await request(number)
            seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(at_once)))
    return Measured(seconds, time.perf_counter() - began)


def latents(*shape: int, seed: int = 0) -> bytes:
    """Make a safetensors file with one float32 tensor of latents."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return to_safetensors([from_raw(values.tobytes(), shape, "float32")])


async def submit(http: aiohttp.ClientSession, body: bytes, **options: str) -> str:
    """Submit a job, and give its id."""
    async with http.post("/v1/jobs", params=options, data=body, headers=OCTETS) as answer:
        document = await answer.json()
        if answer.status != 202:
            raise RuntimeError(f"{answer.status}: {document}")
        return str(document["id"])


async def get(http: aiohttp.ClientSession, path: str, **options: str) -> bytes:
    """Read something."""
    async with http.get(path, params=options) as answer:
        answer.raise_for_status()
        return await answer.read()
