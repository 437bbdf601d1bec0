"""Batches through the Python client, against a real service."""

from __future__ import annotations

import asyncio
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from darkroom import (
    AsyncClient,
    BatchHandle,
    Client,
    ConflictError,
    GoneError,
    InvalidRequestError,
    JobHandle,
    LatentsError,
    NotFoundError,
    WaitTimeoutError,
)
from darkroom_wire.jobs import BatchStatus, Status
from darkroom_wire.tensors import Tensor, TensorInfo, to_safetensors
from tests.batch_files import batch_file
from tests.conftest import Deployment


@pytest.fixture
def client(installation: Deployment) -> Iterator[Client]:
    """A client of a service with a worker."""
    with Client(installation.api_url) as client:
        yield client


@pytest.fixture
def idle(intake: Deployment) -> Iterator[Client]:
    """A client of a service without a worker."""
    with Client(intake.api_url) as client:
        yield client


def latents(seed: int = 0) -> np.ndarray:
    """Make latents."""
    return np.random.default_rng(seed).standard_normal((1, 4, 8, 8)).astype("float16")


def name(job: JobHandle) -> str:
    """Read a job's name."""
    assert job.info.name is not None
    return job.info.name


def test_results_by_name(client: Client) -> None:
    """Each name gets what its latents give alone; names and handles come as jobs end."""
    batch = client.submit_batch({"one": latents(1), "two": latents(2)}, "demo")
    assert (len(batch), isinstance(batch, BatchHandle)) == (2, True)
    found = dict(batch.results(timeout=60, as_="bytes"))
    for label, seed in (("one", 1), ("two", 2)):
        alone = client.submit(latents(seed), "demo")
        assert alone.result(timeout=60, as_="bytes") == found[label]
    assert batch.refresh().status is BatchStatus.COMPLETED
    assert [name(job) for job in batch.jobs()] == ["one", "two"]
    assert batch.wait().counts[Status.SUCCEEDED] == 2


def test_lists_and_files(client: Client, tmp_path: Path) -> None:
    """Items of a list are named by their places; a file's tensors have their own names."""
    np.save(tmp_path / "a.npy", latents())
    listed = client.submit_batch([latents(), tmp_path / "a.npy", *[latents()] * 9], "demo")
    assert [name(job) for job in listed.jobs()][:2] == ["00", "01"]
    path = tmp_path / "many.safetensors"
    path.write_bytes(batch_file(["x", "y"]))
    for given in (path, str(path), path.read_bytes()):
        assert [name(job) for job in client.submit_batch(given, "demo").jobs()] == ["x", "y"]


def test_more_jobs_than_a_page_has(client: Client) -> None:
    """Every job of a larger batch is given once, whatever page it is on."""
    names = [f"{number:03}" for number in range(130)]
    batch = client.submit_batch(batch_file(names), "demo")
    completed = [name(job) for job in batch.as_completed(timeout=120)]
    assert sorted(completed) == names
    assert [name(job) for job in batch.as_completed()] == names


def test_archives(client: Client, tmp_path: Path) -> None:
    """The archive is in its file once it is complete, and otherwise there is none."""
    batch = client.submit_batch({"one": latents()}, "demo")
    batch.wait(timeout=60)
    path = batch.download_zip(tmp_path / "all.zip")
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["one.png"]
        (job,) = batch.jobs()
        assert archive.read("one.png") == job.result(as_="bytes")
    batch.delete()
    with pytest.raises(GoneError):
        batch.download_zip(tmp_path / "gone.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["all.zip"]


def test_ending_a_batch(idle: Client, tmp_path: Path) -> None:
    """Waiting ends at the timeout; what is canceled or deleted stays so, asked once or twice."""
    batch = idle.submit_batch([latents(), latents()], "demo", metadata={"run": 1})
    assert (batch.info.metadata, batch.status) == ({"run": 1}, BatchStatus.QUEUED)
    with pytest.raises(WaitTimeoutError):
        batch.wait(timeout=0.1)
    with pytest.raises(WaitTimeoutError):
        list(batch.as_completed(timeout=0.1))
    with pytest.raises(ConflictError):
        batch.download_zip(tmp_path / "early.zip")
    first = next(batch.jobs())
    first.cancel()
    assert batch.refresh().finished == 1
    for _ in range(2):
        assert batch.cancel().counts[Status.CANCELED] == 2
    assert [job.status for job in batch.as_completed()] == [Status.CANCELED] * 2
    for _ in range(2):
        batch.delete()
    with pytest.raises(GoneError):
        idle.batch(batch.id)
    with pytest.raises(NotFoundError):
        idle.batch("nothing")


def test_looking_batches_up(idle: Client) -> None:
    """Batches are found by their ids and listed, newest first."""
    made = [idle.submit_batch([latents()], "demo") for _ in range(3)]
    assert idle.batch(made[0].id).info.total == 1
    assert [batch.id for batch in idle.batches(limit=2)] == [made[2].id, made[1].id]
    jobs = list(idle.jobs(batch_id=made[0].id))
    assert [job.info.batch_id for job in jobs] == [made[0].id]


def test_the_same_batch_again(idle: Client) -> None:
    """One idempotency key gives one batch."""
    ids = {
        idle.submit_batch([latents()], "demo", idempotency_key="client-batch").id for _ in range(2)
    }
    assert len(ids) == 1


def test_what_cannot_be_a_batch(idle: Client, tmp_path: Path) -> None:
    """Nothing, no latents, several scalings at once: told before anything is sent."""
    with pytest.raises(LatentsError, match="1 to 10000"):
        idle.submit_batch([], "demo")
    with pytest.raises(LatentsError, match="int64"):
        idle.submit_batch({"a": np.zeros((1, 4, 8, 8), "int64")}, "demo")
    with pytest.raises(LatentsError, match="many tensors"):
        idle.submit_batch(tmp_path / "a.npy", "demo")
    old = Tensor(TensorInfo("latent_tensor", "float32", (1, 4, 8, 8)), memoryview(bytes(1024)))
    comfy = to_safetensors([old])
    with pytest.raises(LatentsError, match="scaled differently"):
        idle.submit_batch({"old": comfy, "plain": latents()}, "demo")
    idle.submit_batch({"old": comfy, "plain": latents()}, "demo", scaling="none")
    idle.submit_batch({"old": comfy}, "demo")
    with pytest.raises(InvalidRequestError) as refused:
        idle.submit_batch({"good": latents(), "bad": latents()[:, :3]}, "demo")
    assert [error.field for error in refused.value.errors] == ["latents.bad"]


def test_as_coroutines(installation: Deployment, tmp_path: Path) -> None:
    """The asynchronous client does the same."""

    async def run() -> None:
        client = AsyncClient(installation.api_url)
        try:
            batch = await client.submit_batch({"one": latents(1), "two": latents(2)}, "demo")
            ended = [job.info.name async for job in batch.as_completed(timeout=60)]
            assert sorted(map(str, ended)) == ["one", "two"]
            assert (await batch.wait()).status is BatchStatus.COMPLETED
            results = {label: found async for label, found in batch.results(as_="bytes")}
            path = await batch.download_zip(tmp_path / "all.zip")
            with zipfile.ZipFile(path) as archive:
                assert archive.read("one.png") == results["one"]
            assert [job.info.name async for job in batch.jobs()] == ["one", "two"]
            assert (await batch.cancel()).status is BatchStatus.COMPLETED
            assert (await client.batch(batch.id)).id == batch.id
            assert [known.id async for known in client.batches(limit=1)] == [batch.id]
            await batch.delete()
            with pytest.raises(GoneError):
                await batch.refresh()
        finally:
            await client.close()

    asyncio.run(run())
