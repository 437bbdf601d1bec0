"""Handles of jobs: what was last seen of a job, and what can be done with it."""

# ruff: noqa: ASYNC109 - a timeout is a wait that the service is asked for; both clients have it.

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from darkroom import _flows as flows
from darkroom import _requests as requests
from darkroom._options import SubmitOptions, options_query
from darkroom._results import As, convert
from darkroom_wire.jobs import Job, Status

if TYPE_CHECKING:
    import numpy.typing as npt

    from darkroom._engine import AsyncEngine, Engine


class BaseHandle:
    """A job as it was last seen."""

    def __init__(self, info: Job) -> None:
        self._info = info

    @property
    def id(self) -> str:
        """The job's id."""
        return self._info.id

    @property
    def info(self) -> Job:
        """The job's document as it was last seen. Nothing is asked for."""
        return self._info

    @property
    def status(self) -> Status:
        """The job's status as it was last seen. Nothing is asked for."""
        return self._info.status

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.status}>"


class JobHandle(BaseHandle):
    """A job of a `Client`."""

    def __init__(self, engine: Engine, info: Job) -> None:
        super().__init__(info)
        self._engine = engine

    def refresh(self) -> Job:
        """Read the job as it is now."""
        return self._see(flows.refresh(self._engine.rules, self.id))

    def look(self, seconds: int, deadline: float | None = None) -> Job:
        """Read the job when it ends, or after some seconds at the latest."""
        return self._see(flows.look(self._engine.rules, self.id, seconds, deadline))

    def wait(self, timeout: float | None = None) -> Job:
        """Wait for the job's end, in whichever way. Whole seconds: a timeout is rounded up.

        Raises:
            WaitTimeoutError: it is not finished in time. It goes on.
        """
        if self.status.finished:
            return self.info
        return self._see(flows.wait(self._engine.rules, self.id, timeout))

    @overload
    def result(
        self, timeout: float | None = None, *, as_: Literal["bytes"]
    ) -> bytes | list[bytes]: ...
    @overload
    def result(
        self, timeout: float | None = None, *, as_: Literal["numpy"]
    ) -> npt.NDArray[Any]: ...
    @overload
    def result(self, timeout: float | None = None, *, as_: As = "auto") -> Any: ...

    def result(self, timeout: float | None = None, *, as_: As = "auto") -> Any:
        """Wait for the job and fetch what it made: one object, or a list where there are several.

        Args:
            timeout: Seconds to wait for the job's end.
            as_: `auto`: a `PIL.Image` for a picture, a list of them for an animated WebP, bytes
                for an MP4 or an archive of frames, and for safetensors a torch tensor where torch
                is loaded, else a numpy array. Or by name: `pil` (frames: a list for each video),
                `numpy` or `torch` (pictures: uint8 [B, H, W, 3], videos: [B, F, H, W, 3]), `bytes`.
                numpy has no bfloat16: it comes as float32.

        Raises:
            JobEndedError: the job failed, was canceled, or its results are gone.
            WaitTimeoutError: it is not finished in time. It goes on.
            ResultTypeError: the result cannot be had as that, or a library for it is missing.
            ResultCorruptError: other bytes came than were stored.
        """
        outputs = self.download(timeout)
        return convert(self.info, outputs, as_)

    def download(self, timeout: float | None = None) -> list[bytes]:
        """Wait for the job and fetch all its outputs as they are stored.

        Raises:
            JobEndedError: the job failed, was canceled, or its results are gone.
            WaitTimeoutError: it is not finished in time. It goes on.
        """
        self.wait(timeout)
        return self._engine.run(flows.fetch_outputs(self._engine.rules, self.info))

    def again(
        self,
        vae: str | None = None,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> JobHandle:
        """Submit the job's latents once more: nothing is sent but the options.

        Args:
            vae: Another VAE of the catalogue; else the same.
            idempotency_key: As for `Client.submit`.
            **options: What is to be different; the rest is as for this job.

        Raises:
            GoneError: the latents are no longer stored: the job was deleted or has expired.
            InvalidRequestError: the options cannot be served.
        """
        query = options_query(vae, options)
        flow = flows.again(self._engine.rules, self.id, query, idempotency_key)
        return JobHandle(self._engine, self._engine.run(flow))

    def cancel(self) -> Job:
        """Cancel the job. One that is canceled already stays so.

        Raises:
            ConflictError: it ended in another way.
        """
        return self._see(flows.cancel(self._engine.rules, self.id))

    def delete(self) -> None:
        """Delete the job, its latents and its results; it is canceled if it is not finished."""
        self._engine.run(flows.send(self._engine.rules, requests.delete_job(self.id)))

    def _see(self, flow: flows.Flow[Job]) -> Job:
        self._info = self._engine.run(flow)
        return self._info


class AsyncJobHandle(BaseHandle):
    """A job of an `AsyncClient`."""

    def __init__(self, engine: AsyncEngine, info: Job) -> None:
        super().__init__(info)
        self._engine = engine

    async def refresh(self) -> Job:
        """Read the job as it is now."""
        return await self._see(flows.refresh(self._engine.rules, self.id))

    async def look(self, seconds: int, deadline: float | None = None) -> Job:
        """Read the job when it ends, or after some seconds at the latest."""
        return await self._see(flows.look(self._engine.rules, self.id, seconds, deadline))

    async def wait(self, timeout: float | None = None) -> Job:
        """Wait for the job's end, in whichever way. Whole seconds: a timeout is rounded up.

        Raises:
            WaitTimeoutError: it is not finished in time. It goes on.
        """
        if self.status.finished:
            return self.info
        return await self._see(flows.wait(self._engine.rules, self.id, timeout))

    @overload
    async def result(
        self, timeout: float | None = None, *, as_: Literal["bytes"]
    ) -> bytes | list[bytes]: ...
    @overload
    async def result(
        self, timeout: float | None = None, *, as_: Literal["numpy"]
    ) -> npt.NDArray[Any]: ...
    @overload
    async def result(self, timeout: float | None = None, *, as_: As = "auto") -> Any: ...

    async def result(self, timeout: float | None = None, *, as_: As = "auto") -> Any:
        """Wait for the job and fetch what it made: one object, or a list where there are several.

        Args:
            timeout: Seconds to wait for the job's end.
            as_: `auto`: a `PIL.Image` for a picture, a list of them for an animated WebP, bytes
                for an MP4 or an archive of frames, and for safetensors a torch tensor where torch
                is loaded, else a numpy array. Or by name: `pil` (frames: a list for each video),
                `numpy` or `torch` (pictures: uint8 [B, H, W, 3], videos: [B, F, H, W, 3]), `bytes`.
                numpy has no bfloat16: it comes as float32.

        Raises:
            JobEndedError: the job failed, was canceled, or its results are gone.
            WaitTimeoutError: it is not finished in time. It goes on.
            ResultTypeError: the result cannot be had as that, or a library for it is missing.
            ResultCorruptError: other bytes came than were stored.
        """
        outputs = await self.download(timeout)
        return convert(self.info, outputs, as_)

    async def download(self, timeout: float | None = None) -> list[bytes]:
        """Wait for the job and fetch all its outputs as they are stored.

        Raises:
            JobEndedError: the job failed, was canceled, or its results are gone.
            WaitTimeoutError: it is not finished in time. It goes on.
        """
        await self.wait(timeout)
        return await self._engine.run(flows.fetch_outputs(self._engine.rules, self.info))

    async def again(
        self,
        vae: str | None = None,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> AsyncJobHandle:
        """Submit the job's latents once more: nothing is sent but the options.

        Args:
            vae: Another VAE of the catalogue; else the same.
            idempotency_key: As for `Client.submit`.
            **options: What is to be different; the rest is as for this job.

        Raises:
            GoneError: the latents are no longer stored: the job was deleted or has expired.
            InvalidRequestError: the options cannot be served.
        """
        query = options_query(vae, options)
        flow = flows.again(self._engine.rules, self.id, query, idempotency_key)
        return AsyncJobHandle(self._engine, await self._engine.run(flow))

    async def cancel(self) -> Job:
        """Cancel the job. One that is canceled already stays so.

        Raises:
            ConflictError: it ended in another way.
        """
        return await self._see(flows.cancel(self._engine.rules, self.id))

    async def delete(self) -> None:
        """Delete the job, its latents and its results; it is canceled if it is not finished."""
        await self._engine.run(flows.send(self._engine.rules, requests.delete_job(self.id)))

    async def _see(self, flow: flows.Flow[Job]) -> Job:
        self._info = await self._engine.run(flow)
        return self._info
