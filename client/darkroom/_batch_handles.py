"""Handles of batches: what was last seen of a batch, and what can be done with it."""

# ruff: noqa: ASYNC109 - a timeout is a wait that the service is asked for; both clients have it.

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darkroom import _batch_flows as flows
from darkroom._handles import AsyncJobHandle, JobHandle
from darkroom._progress import progress_bar
from darkroom._results import As
from darkroom_wire.jobs import Batch, BatchStatus

if TYPE_CHECKING:
    from darkroom._engine import AsyncEngine, Engine
    from darkroom._flows import Flow


class BaseBatchHandle:
    """A batch as it was last seen."""

    def __init__(self, info: Batch) -> None:
        self._info = info

    @property
    def id(self) -> str:
        """The batch's id."""
        return self._info.id

    @property
    def info(self) -> Batch:
        """The batch's document as it was last seen. Nothing is asked for."""
        return self._info

    @property
    def status(self) -> BatchStatus:
        """The batch's status as it was last seen. Nothing is asked for."""
        return self._info.status

    def __len__(self) -> int:
        return self._info.total

    def __repr__(self) -> str:
        info = self._info
        return f"<{type(self).__name__} {self.id} {info.finished}/{info.total}>"


class BatchHandle(BaseBatchHandle):
    """A batch of a `Client`."""

    def __init__(self, engine: Engine, info: Batch) -> None:
        super().__init__(info)
        self._engine = engine

    def refresh(self) -> Batch:
        """Read the batch as it is now."""
        return self._see(flows.refresh(self._engine.rules, self.id))

    def wait(self, timeout: float | None = None) -> Batch:
        """Wait until all jobs have ended, in whichever way.

        Raises:
            WaitTimeoutError: they are not finished in time. They go on.
        """
        if self.status is BatchStatus.COMPLETED:
            return self.info
        return self._see(flows.wait(self._engine.rules, self.id, timeout))

    def jobs(self) -> Iterator[JobHandle]:
        """Give the jobs in the order of the batch's file; `info.name` is the tensor's name."""
        cursor: str | None = None
        while True:
            page = self._engine.run(flows.results(self._engine.rules, self.id, cursor))
            yield from (JobHandle(self._engine, job) for job in page.results)
            if (cursor := page.next) is None:
                return

    def as_completed(
        self, timeout: float | None = None, *, progress: bool = False
    ) -> Iterator[JobHandle]:
        """Give the jobs as they end, in whichever way; `status` tells which.

        Raises:
            WaitTimeoutError: the timeout, which begins with the first item, is over.
        """
        rules, finished = self._engine.rules, flows.Finished(len(self))
        deadline = rules.deadline(timeout)
        with progress_bar("developing", len(self), shown=progress) as bar:
            while True:
                seconds = finished.seconds(rules.wait_seconds(deadline))
                look = flows.look(rules, self.id, seconds, deadline, finished.beyond)
                batch, given = self._see(look), 0
                cursor, size = finished.begin(), finished.page(batch)
                while True:
                    page = self._engine.run(flows.results(rules, self.id, cursor, size))
                    for job in finished.take(page):
                        given += 1
                        bar.step()
                        yield JobHandle(self._engine, job)
                    if (cursor := page.next) is None or finished.enough(batch, given):
                        break
                finished.seen = batch.finished
                if batch.status is BatchStatus.COMPLETED:
                    return
                flows.check_deadline(rules, batch, deadline)

    def results(
        self, timeout: float | None = None, *, as_: As = "auto"
    ) -> Iterator[tuple[str, Any]]:
        """Give each job's name and result as they end; `JobHandle.result` tells of `as_`.

        Raises:
            JobEndedError: a job ended without a result. Use `as_completed` to go on with others.
            WaitTimeoutError: the timeout, which begins with the first item, is over.
        """
        for job in self.as_completed(timeout):
            yield job.info.name or job.id, job.result(as_=as_)

    def download_zip(self, path: str | os.PathLike[str], *, partial: bool = False) -> Path:
        """Fetch all results as one zip into a file, named after the tensors; give its path.

        Args:
            path: The file. It appears once it is complete.
            partial: Also before all jobs have ended.

        Raises:
            ConflictError: not all jobs have ended.
        """
        target = Path(path)
        flow = flows.download_zip(self._engine.rules, self.id, target, partial=partial)
        self._engine.run(flow)
        return target

    def cancel(self) -> Batch:
        """Cancel the jobs that have not ended."""
        return self._see(flows.cancel(self._engine.rules, self.id))

    def delete(self) -> None:
        """Delete the batch, its jobs, latents and results; what is not finished is canceled."""
        self._engine.run(flows.delete(self._engine.rules, self.id))

    def _see(self, flow: Flow[Batch]) -> Batch:
        self._info = self._engine.run(flow)
        return self._info


class AsyncBatchHandle(BaseBatchHandle):
    """A batch of an `AsyncClient`. `BatchHandle` explains arguments, results and errors."""

    def __init__(self, engine: AsyncEngine, info: Batch) -> None:
        super().__init__(info)
        self._engine = engine

    async def refresh(self) -> Batch:
        """Read the batch as it is now."""
        return await self._see(flows.refresh(self._engine.rules, self.id))

    async def wait(self, timeout: float | None = None) -> Batch:
        """Wait until all jobs have ended, in whichever way.

        Raises:
            WaitTimeoutError: they are not finished in time. They go on.
        """
        if self.status is BatchStatus.COMPLETED:
            return self.info
        return await self._see(flows.wait(self._engine.rules, self.id, timeout))

    async def jobs(self) -> AsyncIterator[AsyncJobHandle]:
        """Give the jobs in the order of the batch's file; `info.name` is the tensor's name."""
        cursor: str | None = None
        while True:
            page = await self._engine.run(flows.results(self._engine.rules, self.id, cursor))
            for job in page.results:
                yield AsyncJobHandle(self._engine, job)
            if (cursor := page.next) is None:
                return

    async def as_completed(
        self, timeout: float | None = None, *, progress: bool = False
    ) -> AsyncIterator[AsyncJobHandle]:
        """Give the jobs as they end, in whichever way; `status` tells which.

        Raises:
            WaitTimeoutError: the timeout, which begins with the first item, is over.
        """
        rules, finished = self._engine.rules, flows.Finished(len(self))
        deadline = rules.deadline(timeout)
        with progress_bar("developing", len(self), shown=progress) as bar:
            while True:
                seconds = finished.seconds(rules.wait_seconds(deadline))
                look = flows.look(rules, self.id, seconds, deadline, finished.beyond)
                batch, given = await self._see(look), 0
                cursor, size = finished.begin(), finished.page(batch)
                while True:
                    page = await self._engine.run(flows.results(rules, self.id, cursor, size))
                    for job in finished.take(page):
                        given += 1
                        bar.step()
                        yield AsyncJobHandle(self._engine, job)
                    if (cursor := page.next) is None or finished.enough(batch, given):
                        break
                finished.seen = batch.finished
                if batch.status is BatchStatus.COMPLETED:
                    return
                flows.check_deadline(rules, batch, deadline)

    async def results(
        self, timeout: float | None = None, *, as_: As = "auto"
    ) -> AsyncIterator[tuple[str, Any]]:
        """Give each job's name and result as they end, as `BatchHandle.results` does."""
        async for job in self.as_completed(timeout):
            yield job.info.name or job.id, await job.result(as_=as_)

    async def download_zip(self, path: str | os.PathLike[str], *, partial: bool = False) -> Path:
        """Fetch all results as one zip into a file, as `BatchHandle.download_zip` does."""
        target = Path(path)
        flow = flows.download_zip(self._engine.rules, self.id, target, partial=partial)
        await self._engine.run(flow)
        return target

    async def cancel(self) -> Batch:
        """Cancel the jobs that have not ended."""
        return await self._see(flows.cancel(self._engine.rules, self.id))

    async def delete(self) -> None:
        """Delete the batch, its jobs, latents and results; what is not finished is canceled."""
        await self._engine.run(flows.delete(self._engine.rules, self.id))

    async def _see(self, flow: Flow[Batch]) -> Batch:
        self._info = await self._engine.run(flow)
        return self._info
