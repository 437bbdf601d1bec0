"""The client for programs with an event loop: the same calls as coroutines."""

from __future__ import annotations

import asyncio
import random as random_module
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Self, Unpack

from darkroom import _batch_flows as batch_flows
from darkroom import _flows as flows
from darkroom import _requests as requests
from darkroom._batch_files import BatchLike, read_batch
from darkroom._batch_handles import AsyncBatchHandle
from darkroom._engine import DEFAULT_TIMEOUT, AsyncEngine
from darkroom._errors import DarkroomError
from darkroom._handles import AsyncJobHandle
from darkroom._latents import LatentsLike, read_body
from darkroom._options import SubmitOptions, options_query
from darkroom._progress import Bar, progress_bar
from darkroom._retry import RetryPolicy
from darkroom._settings import load_settings
from darkroom._waiting import SUBMITS_IN_FLIGHT, WaitQueue
from darkroom_wire.jobs import Job, QueueState, VaeInfo, VaeList


class AsyncClient:
    """A Darkroom service, for one event loop. `Client` explains arguments, results and errors."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        retry: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._rules = flows.Rules(retry or RetryPolicy(), clock, random)
        self._engine = AsyncEngine(load_settings(url, api_key), self._rules, timeout, sleep)
        self._run = self._engine.run

    @property
    def url(self) -> str:
        """The service's address."""
        return self._engine.settings.url

    async def submit(
        self,
        latents: LatentsLike,
        vae: str,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> AsyncJobHandle:
        """Submit latents as one job, as `Client.submit` does."""
        query = options_query(vae, options)
        # Off the event loop: a file to be read, or values to be copied from a GPU.
        body = await asyncio.to_thread(read_body, latents, options.get("task"))
        flow = flows.submit(self._rules, body, query, idempotency_key)
        return AsyncJobHandle(self._engine, await self._run(flow))

    async def submit_many(
        self,
        latents: Iterable[LatentsLike],
        vae: str,
        *,
        progress: bool = False,
        **options: Unpack[SubmitOptions],
    ) -> list[AsyncJobHandle]:
        """Submit one job for each item, several at a time; the handles come in the items' order.

        Raises:
            DarkroomError: the first error; its `submitted` has the ids of the jobs that were
                accepted before it.
        """
        items = list(latents)
        handles: dict[int, AsyncJobHandle] = {}
        failures: list[DarkroomError] = []
        waiting = iter(enumerate(items))

        async def submit_in_turn(bar: Bar) -> None:
            for index, item in waiting:
                try:
                    handles[index] = await self.submit(item, vae, **options)
                    bar.step()
                except DarkroomError as error:
                    failures.append(error)
                if failures:
                    return

        with progress_bar("submitting", len(items), shown=progress) as bar:
            await asyncio.gather(*(submit_in_turn(bar) for _ in range(SUBMITS_IN_FLIGHT)))
        done = [handles[index] for index in sorted(handles)]
        if failures:
            failures[0].submitted = tuple(handle.id for handle in done)
            raise failures[0]
        return done

    async def submit_batch(
        self,
        latents: BatchLike,
        vae: str,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> AsyncBatchHandle:
        """Submit up to 10,000 latents in one call, as `Client.submit_batch` does."""
        content, settled = await asyncio.to_thread(read_batch, latents, options)
        query = options_query(vae, settled)
        flow = batch_flows.submit(self._rules, content, query, idempotency_key)
        return AsyncBatchHandle(self._engine, await self._run(flow))

    async def batch(self, batch_id: str) -> AsyncBatchHandle:
        """Look a batch up.

        Raises:
            NotFoundError: there is none, or it belongs to another key.
        """
        flow = batch_flows.refresh(self._rules, batch_id)
        return AsyncBatchHandle(self._engine, await self._run(flow))

    async def batches(self, limit: int | None = None) -> AsyncIterator[AsyncBatchHandle]:
        """Give the batches, newest first, page after page; at most `limit` of them."""
        cursor, left = None, limit
        while left is None or left > 0:
            page = await self._run(batch_flows.page(self._rules, left, cursor))
            found = page.results if left is None else page.results[:left]
            for batch in found:
                yield AsyncBatchHandle(self._engine, batch)
            cursor, left = page.next, None if left is None else left - len(found)
            if cursor is None:
                return

    async def as_completed(
        self,
        jobs: Iterable[AsyncJobHandle],
        timeout: float | None = None,  # noqa: ASYNC109 - the same call as Client has
        *,
        progress: bool = False,
    ) -> AsyncIterator[AsyncJobHandle]:
        """Give the jobs as they end, in whichever way; `status` tells which.

        Raises:
            WaitTimeoutError: the timeout, which begins with the first item, is over.
        """
        queue = WaitQueue(jobs, self._rules.clock, timeout)
        looks: dict[asyncio.Task[Job], AsyncJobHandle] = {}
        with progress_bar("developing", len(queue), shown=progress) as bar:
            try:
                while True:
                    for handle in queue.finished():
                        bar.step()
                        yield handle
                    if not len(queue):
                        return
                    for handle, seconds in queue.turns():
                        look = asyncio.create_task(handle.look(seconds, queue.deadline))
                        looks[look] = handle
                    await _wait_for_any(looks, queue)
            finally:
                for look in looks:
                    look.cancel()

    async def job(self, job_id: str) -> AsyncJobHandle:
        """Look a job up.

        Raises:
            NotFoundError: there is none, or it belongs to another key.
        """
        return AsyncJobHandle(self._engine, await self._run(flows.refresh(self._rules, job_id)))

    async def jobs(
        self, status: str | None = None, batch_id: str | None = None, limit: int | None = None
    ) -> AsyncIterator[AsyncJobHandle]:
        """Give the jobs, newest first, page after page; at most `limit` of them."""
        cursor, left = None, limit
        while left is None or left > 0:
            page = await self._run(flows.page(self._rules, status, batch_id, left, cursor))
            found = page.results if left is None else page.results[:left]
            for job in found:
                yield AsyncJobHandle(self._engine, job)
            cursor, left = page.next, None if left is None else left - len(found)
            if cursor is None:
                return

    async def vaes(self) -> list[VaeInfo]:
        """Read the catalogue."""
        return (await self._run(flows.read(self._rules, requests.list_vaes(), VaeList))).results

    async def vae(self, name: str) -> VaeInfo:
        """Read one entry of the catalogue, with `config` and `buffers` where they are known.

        Raises:
            NotFoundError: there is none of that name.
        """
        return await self._run(flows.read(self._rules, requests.get_vae(name), VaeInfo))

    async def queue(self) -> QueueState:
        """Read what waits and who works."""
        return await self._run(flows.read(self._rules, requests.get_queue(), QueueState))

    async def close(self) -> None:
        """Close the connections."""
        await self._engine.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


async def _wait_for_any(
    looks: dict[asyncio.Task[Job], AsyncJobHandle], queue: WaitQueue[AsyncJobHandle]
) -> None:
    """Wait until at least one look is over, and put its job back into the queue."""
    done, _ = await asyncio.wait(
        looks, timeout=queue.remaining(), return_when=asyncio.FIRST_COMPLETED
    )
    for look in done:
        handle = looks.pop(look)
        await look  # raises the look's error, if it has one
        queue.looked(handle)
