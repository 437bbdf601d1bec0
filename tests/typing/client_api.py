"""The client as a user writes it: checked by mypy, never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
import torch

from darkroom import (
    AsyncClient,
    AsyncJobHandle,
    Client,
    DarkroomError,
    JobFailedError,
    JobHandle,
    RequestRefusedError,
    RetryPolicy,
    SubmitOptions,
    WaitTimeoutError,
)
from darkroom_wire.jobs import Format, Job, QueueState, Status, VaeInfo


def submit_anything(client: Client) -> list[JobHandle]:
    """Latents of each kind that is documented."""
    return [
        client.submit(torch.zeros(1, 4, 8, 8), vae="sdxl"),
        client.submit(np.zeros((1, 4, 8, 8), np.float16), "sdxl", format="png", quality=90),
        client.submit("latents.safetensors", "sdxl", format=Format.WEBP, metadata={"a": [1]}),
        client.submit(Path("latents.npy"), "flux", height=1024, width=1024, priority="batch"),
        client.submit(b"...", "wan", fps=24, callback_events=["job.succeeded"], ttl=60),
    ]


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
        assert_type(client.queue(), QueueState)


async def same_with_coroutines() -> None:
    """The same calls with `await`."""
    async with AsyncClient() as client:
        job = await client.submit(torch.zeros(1), vae="sdxl")
        assert_type(job, AsyncJobHandle)
        assert_type(await job.wait(), Job)
        assert_type(await job.result(as_="bytes"), bytes | list[bytes])
        jobs = await client.submit_many([b"..."], "flux", height=8, width=8)
        async for ended in client.as_completed(jobs):
            assert_type(ended, AsyncJobHandle)
        async for found in client.jobs():
            assert_type(found, AsyncJobHandle)
        assert_type(await client.vaes(), list[VaeInfo])


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
