"""The client as a user writes it: checked by mypy, never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from darkroom import (
    AsyncBatchHandle,
    AsyncClient,
    AsyncJobHandle,
    BatchHandle,
    Client,
    DarkroomError,
    JobFailedError,
    JobHandle,
    RemoteVAE,
    RequestRefusedError,
    RetryPolicy,
    SubmitOptions,
    WaitTimeoutError,
    remote_decode,
    remote_encode,
)
from darkroom_wire.jobs import Batch, Format, Job, QueueState, Status, Task, VaeInfo


def submit_anything(client: Client) -> list[JobHandle]:
    """Latents of each kind that is documented."""
    return [
        client.submit(torch.zeros(1, 4, 8, 8), vae="sdxl"),
        client.submit(np.zeros((1, 4, 8, 8), np.float16), "sdxl", format="png", quality=90),
        client.submit("latents.safetensors", "sdxl", format=Format.WEBP, metadata={"a": [1]}),
        client.submit(Path("latents.npy"), "flux", height=1024, width=1024, priority="batch"),
        client.submit(b"...", "wan", fps=24, callback_events=["job.succeeded"], ttl=60),
    ]


def encode_anything(client: Client, image: Image.Image) -> list[JobHandle]:
    """Pictures of each kind that is documented."""
    return [
        client.submit(image, "sdxl", task="encode"),
        client.submit("picture.png", "sdxl", task=Task.ENCODE, scaling="none"),
        client.submit(np.zeros((1, 3, 64, 64), np.uint8), "sdxl", task="encode"),
    ]


def remote(image: Image.Image) -> None:
    """Calls as diffusers' users write them, and a VAE for a pipeline."""
    latents = torch.zeros(1, 4, 8, 8)
    assert_type(remote_decode("http://h/hf/sdxl/decode", latents, do_scaling=False), Any)
    remote_decode(endpoint="sdxl", tensor=latents, output_type="pt", return_type="pt")
    assert_type(remote_encode("sdxl", image, 0.18215), Any)
    vae = RemoteVAE("sdxl", Client(), dtype=torch.float16, timeout=600).to("cuda").eval()
    assert_type(vae, RemoteVAE)
    vae.decode(latents, return_dict=False)


def read_results(job: JobHandle) -> None:
    """What a handle gives."""
    assert_type(job.id, str)
    assert_type(job.status, Status)
    assert_type(job.info, Job)
    assert_type(job.wait(timeout=1.5), Job)
    assert_type(job.result(), Any)
    assert_type(job.result(timeout=60, as_="bytes"), bytes | list[bytes])
    assert_type(job.result(as_="numpy"), npt.NDArray[Any])
    assert_type(job.download(), list[bytes])
    assert_type(job.again(format="jpeg"), JobHandle)
    assert_type(job.again("taesdxl", idempotency_key="k"), JobHandle)
    assert_type(job.cancel(), Job)
    job.delete()


def read_service() -> None:
    """What a client gives."""
    options: SubmitOptions = {"format": "png", "scaling": "none"}
    with Client("http://h", "key", timeout=5, retry=RetryPolicy(attempts=1)) as client:
        jobs = client.submit_many([torch.zeros(1)], vae="flux", progress=True, **options)
        for job in client.as_completed(jobs, timeout=60, progress=True):
            assert_type(job, JobHandle)
        assert_type(next(client.jobs(status="failed", limit=5)), JobHandle)
        assert_type(client.job("id"), JobHandle)
        assert_type(client.vaes(), list[VaeInfo])
        assert_type(client.vae("sdxl"), VaeInfo)
        assert_type(client.queue(), QueueState)


async def same_with_coroutines() -> None:
    """The same calls with `await`."""
    async with AsyncClient() as client:
        job = await client.submit(torch.zeros(1), vae="sdxl")
        assert_type(job, AsyncJobHandle)
        assert_type(await job.wait(), Job)
        assert_type(await job.again(quality=80), AsyncJobHandle)
        assert_type(await job.result(as_="bytes"), bytes | list[bytes])
        jobs = await client.submit_many([b"..."], "flux", height=8, width=8)
        async for ended in client.as_completed(jobs):
            assert_type(ended, AsyncJobHandle)
        async for found in client.jobs():
            assert_type(found, AsyncJobHandle)
        assert_type(await client.vaes(), list[VaeInfo])
        assert_type(await client.vae("sdxl"), VaeInfo)


def handle_errors(job: JobHandle) -> str:
    """Errors and what they carry."""
    try:
        job.result()
    except JobFailedError as error:
        return assert_type(error.job, Job).id
    except RequestRefusedError as error:
        return f"{assert_type(error.status, int)} {error.title} {error.detail} {error.errors}"
    except WaitTimeoutError:
        return "later"
    except DarkroomError as error:
        return " ".join(assert_type(error.submitted, tuple[str, ...]))
    return "done"


def submit_batches(client: Client) -> None:
    """Many latents in one call, and what is done with them."""
    named = {"a": torch.zeros(1, 4, 8, 8), "b": torch.zeros(1, 4, 8, 8)}
    batch = client.submit_batch(named, "sdxl", format="webp", priority="batch")
    assert_type(batch, BatchHandle)
    client.submit_batch([np.zeros((1, 4, 8, 8), np.float16)], "sdxl", idempotency_key="once")
    client.submit_batch(Path("many.safetensors"), vae="sdxl")
    assert_type(batch.wait(timeout=60), Batch)
    for job in batch.as_completed(progress=True):
        assert_type(job, JobHandle)
    assert_type(batch.download_zip("results.zip"), Path)
    assert_type(client.batch("id"), BatchHandle)
    for known in client.batches(limit=3):
        known.delete()


async def submit_batches_async(client: AsyncClient) -> None:
    """The same as coroutines."""
    batch = await client.submit_batch(["a.npy", "b.npy"], "sdxl")
    assert_type(batch, AsyncBatchHandle)
    async for job in batch.as_completed():
        assert_type(job, AsyncJobHandle)
    assert_type(await batch.cancel(), Batch)
