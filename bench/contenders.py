"""Programs that make pictures from latents, one worker process each: Darkroom and its peers.

All decode the same VAEs with the same number of threads. The peers run in environments of their
own, which are made on first use with the versions of torch and diffusers that run here.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
from celery import Celery

from darkroom_infra.embedded.ports import HOST, free_ports
from darkroom_infra.embedded.supervisor import Program
from darkroom_infra.settings import Settings
from darkroom_infra.store import ObjectStore, StoreConfig

from .clients import OCTETS
from .installation import Installation, Site

SERVERS = Path(__file__).parent / "servers"
ENVIRONMENTS = Path(__file__).parents[1] / ".darkroom" / "bench"
SHARED = ("torch", "diffusers", "safetensors", "pillow")
PLAIN_BUCKET = "bench-plain"
START_SECONDS = 180.0
BUSY = 409
POLL = 0.01
"""How often those are asked that cannot be waited for, in seconds: by all clients together, so that
asking takes the same share of the cores however many there are."""

Picture = Callable[[aiohttp.ClientSession, bytes], Awaitable[bytes]]
"""Sends latents, a safetensors file, and comes back with a PNG file."""


@dataclass(frozen=True)
class Contender:
    """What runs, and how to have a picture made by it."""

    name: str
    picture: Picture


def darkroom(site: Site, vae: str) -> Contender:
    """Start an API and a worker."""
    site.start_api()
    site.start_worker()

    async def picture(http: aiohttp.ClientSession, body: bytes) -> bytes:
        headers = {**OCTETS, "Prefer": "wait=60"}
        url = f"{site.url}/v1/jobs"
        async with http.post(url, params={"vae": vae}, data=body, headers=headers) as answer:
            job = await _json(answer)
        while not job["outputs"]:
            async with http.get(f"{url}/{job['id']}", params={"wait": "60"}) as answer:
                job = await _json(answer)
            if job["error"]:
                raise RuntimeError(job["error"])
        return await _read(http, job["outputs"][0]["url"])

    return Contender("Darkroom", picture)


def plain_celery(installation: Installation, vae: Path) -> Contender:
    """Start a Celery worker that does one task after the other, on the same Redis and S3."""
    stack = installation.stack
    redis_url = stack.redis_url.removesuffix("/0") + "/15"
    environment = {
        "BENCH_VAE": str(vae),
        "BENCH_REDIS": redis_url,
        "BENCH_S3": stack.s3_url,
        "BENCH_BUCKET": PLAIN_BUCKET,
        "AWS_ACCESS_KEY_ID": stack.credentials.access_key_id,
        "AWS_SECRET_ACCESS_KEY": stack.credentials.secret_access_key,
        "AWS_DEFAULT_REGION": Settings().s3_region,
        "PYTHONPATH": str(SERVERS),
    }
    tasks = Celery(broker=redis_url, backend=redis_url)
    store = ObjectStore(
        StoreConfig(
            PLAIN_BUCKET,
            Settings().s3_region,
            stack.s3_url,
            access_key_id=stack.credentials.access_key_id,
            secret_access_key=stack.credentials.secret_access_key,
        )
    )
    store.ensure_bucket()
    command = [sys.executable, "-m", "celery", "-A", "celery_tasks", "worker", "--pool", "solo"]
    ready = partial(_answers_celery, tasks)
    program = Program("plain-celery", command, environment, ready, START_SECONDS)
    installation.supervisor.start(program)

    waiting = set[str]()

    def picture(body: bytes) -> bytes:
        key = uuid4().hex
        store.put(key, io.BytesIO(body), "application/octet-stream")
        result = tasks.send_task("celery_tasks.decode", [key])
        waiting.add(key)
        while (meta := tasks.backend.get_task_meta(result.id))["status"] in ("PENDING", "STARTED"):
            time.sleep(POLL * len(waiting))
        waiting.remove(key)
        if meta["status"] != "SUCCESS":
            raise RuntimeError(meta["result"])
        return store.get(meta["result"])

    return Contender("plain Celery task", lambda _, body: asyncio.to_thread(picture, body))


def litserve(installation: Installation, vae: Path) -> Contender:
    """Start LitServe: a server process and a worker process."""
    python = _environment("litserve", "litserve==0.2.19")
    url = _serve(installation, "litserve", [python, "-m", "litserve_server"], "/health", vae)

    async def picture(http: aiohttp.ClientSession, body: bytes) -> bytes:
        async with http.post(f"{url}/predict", json={"latents": _text(body)}) as answer:
            return base64.b64decode((await _json(answer))["picture"])

    return Contender("LitServe", picture)


def bentoml(installation: Installation, vae: Path) -> Contender:
    """Start a BentoML service with a task queue."""
    python = _environment("bentoml", "bentoml==1.4.40")
    serve = [python, "-m", "bentoml", "serve", "--working-dir", str(SERVERS), "--host", HOST]
    url = _serve(installation, "bentoml", [*serve, "bentoml_service:Service"], "/readyz", vae)

    waiting = set[str]()

    async def picture(http: aiohttp.ClientSession, body: bytes) -> bytes:
        async with http.post(f"{url}/decode/submit", json={"latents": _text(body)}) as answer:
            task = {"task_id": (await _json(answer))["task_id"]}
        status = "in_progress"
        waiting.add(task["task_id"])
        while status == "in_progress":
            await asyncio.sleep(POLL * len(waiting))
            async with http.get(f"{url}/decode/status", params=task) as answer:
                status = (await _json(answer))["status"]
        waiting.remove(task["task_id"])
        async with http.get(f"{url}/decode/get", params=task) as answer:
            answer.raise_for_status()
            return base64.b64decode(await answer.read())

    return Contender("BentoML tasks", picture)


def cog(installation: Installation, vae: Path) -> Contender:
    """Start Cog's server. It takes one prediction at a time: its clients queue themselves."""
    python = _environment("cog", "cog==0.23.1")
    command = [python, "-m", "cog.server.http", "--host", HOST]
    url = _serve(installation, "cog", command, "/health-check", vae)
    turn = asyncio.Lock()

    async def picture(http: aiohttp.ClientSession, body: bytes) -> bytes:
        request = {"input": {"latents": _text(body)}}
        async with turn:
            while True:
                async with http.post(f"{url}/predictions", json=request) as answer:
                    if answer.status != BUSY:  # it may still be, just after its last answer
                        return base64.b64decode((await _json(answer))["output"])
                await asyncio.sleep(POLL)

    return Contender("Cog", picture)


PEERS = (plain_celery, litserve, bentoml, cog)


def _environment(name: str, requirement: str) -> str:
    """Make a virtual environment for a peer, once, and give its interpreter."""
    folder = ENVIRONMENTS / name
    python, done = folder / "bin" / "python", folder / requirement
    if not done.exists():
        print(f"installing {requirement}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        shared = [f"{package}=={version(package).partition('+')[0]}" for package in SHARED]
        subprocess.run([python, "-m", "pip", "install", "-q", requirement, *shared], check=True)
        done.touch()
    return str(python)


def _serve(
    installation: Installation, name: str, command: Sequence[str], health: str, vae: Path
) -> str:
    """Start a peer's server, and give its address once it is ready."""
    (port,) = free_ports(1)
    url = f"http://{HOST}:{port}"
    environment = {
        "PATH": f"{Path(command[0]).parent}{os.pathsep}{os.environ['PATH']}",
        "PORT": str(port),
        "BENTOML_PORT": str(port),
        "PYTHONPATH": str(SERVERS),
        "BENCH_VAE": str(vae),
        "BENTOML_DO_NOT_TRACK": "1",
        "COG_PREDICT_TYPE_STUB": f"{SERVERS / 'cog_predict.py'}:Predictor",
    }
    ready = partial(_answers, url + health)
    installation.supervisor.start(Program(name, command, environment, ready, START_SECONDS))
    return url


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return b'"STARTING"' not in answer.read()  # Cog answers before it is ready
    except OSError:
        return False


def _answers_celery(tasks: Celery) -> bool:
    return bool(tasks.control.ping(timeout=1))


def _text(body: bytes) -> str:
    return base64.b64encode(body).decode()


async def _json(answer: aiohttp.ClientResponse) -> Any:
    document = await answer.json()
    if answer.status >= 400:
        raise RuntimeError(f"{answer.status}: {document}")
    return document


async def _read(http: aiohttp.ClientSession, url: str) -> bytes:
    async with http.get(url) as answer:
        answer.raise_for_status()
        return await answer.read()
