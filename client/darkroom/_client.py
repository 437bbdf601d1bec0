"""The client for ordinary programs: calls that return when they are done."""

from __future__ import annotations

import random as random_module
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from queue import Empty
from types import TracebackType
from typing import Self, Unpack

from darkroom import _batch_flows as batch_flows
from darkroom import _flows as flows
from darkroom import _requests as requests
from darkroom._batch_files import BatchLike, read_batch
from darkroom._batch_handles import BatchHandle
from darkroom._engine import DEFAULT_TIMEOUT, Engine
from darkroom._errors import DarkroomError
from darkroom._handles import JobHandle
from darkroom._latents import LatentsLike, read_body
from darkroom._options import SubmitOptions, options_query
from darkroom._progress import progress_bar
from darkroom._retry import RetryPolicy
from darkroom._settings import load_settings
from darkroom._threads import CallThreads
from darkroom._waiting import SUBMITS_IN_FLIGHT, WAITS_IN_FLIGHT, WaitQueue
from darkroom_wire.jobs import Job, QueueState, VaeInfo, VaeList


class Client:
    """A Darkroom service. Threads may share one client.

    Args:
        url: The service's address; else `DARKROOM_URL`, else http://127.0.0.1:8000.
        api_key: The key; else `DARKROOM_API_KEY`.
        timeout: Seconds without a byte after which a request is given up, beside the time for
            which the service was asked to wait.
        retry: How often a request is sent again.
        clock: Gives seconds; for tests.
        sleep: Waits for seconds; for tests.
        random: Gives a number from 0 to 1; for tests.

    Raises:
        SettingsError: the address or the key cannot be used.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        retry: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        rules = flows.Rules(retry or RetryPolicy(), clock, random)
        self._engine = Engine(load_settings(url, api_key), rules, timeout, sleep)
        self._run = self._engine.run
        self._rules = rules

    @property
    def url(self) -> str:
        """The service's address."""
        return self._engine.settings.url

    def submit(
        self,
        latents: LatentsLike,
        vae: str,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> JobHandle:
        """Submit latents as one job. When this returns, the job can no longer be lost.

        Args:
            latents: A torch tensor on any device or a numpy array (float32, float16, bfloat16), the
                path of a `.safetensors`, ComfyUI `.latent` or `.npy` file, or the bytes of a
                safetensors file. With `task="encode"` pictures, which become latents: a
                `PIL.Image`, the path or the bytes of a PNG, JPEG or WebP file, or a tensor or array
                [B, 3, H, W] in [-1, 1], or in uint8 also [B, H, W, 3].
            vae: A name from the catalogue.
            idempotency_key: The same key with the same request gives the same job. By default each
                call has its own, which it keeps when it has to send its request again.
            **options: See `SubmitOptions`.

        Raises:
            LatentsError: the latents cannot be sent.
            InvalidRequestError: the options or the latents cannot be served.
            DarkroomError: see the tree in `darkroom`.
        """
        query = options_query(vae, options)
        body = read_body(latents, options.get("task"))
        flow = flows.submit(self._rules, body, query, idempotency_key)
        return JobHandle(self._engine, self._run(flow))

    def submit_many(
        self,
        latents: Iterable[LatentsLike],
        vae: str,
        *,
        progress: bool = False,
        **options: Unpack[SubmitOptions],
    ) -> list[JobHandle]:
        """Submit one job for each item, several at a time; the handles come in the items' order.

        Raises:
            DarkroomError: the first error; its `submitted` has the ids of the jobs that were
                accepted before it.
        """
        waiting = deque(enumerate(latents))
        total, in_flight = len(waiting), 0
        handles: dict[int, JobHandle] = {}
        failure: DarkroomError | None = None
        with (
            progress_bar("submitting", total, shown=progress) as bar,
            CallThreads[int, JobHandle](SUBMITS_IN_FLIGHT) as threads,
        ):
            while in_flight or (waiting and not failure):
                while waiting and not failure and in_flight < SUBMITS_IN_FLIGHT:
                    index, item = waiting.popleft()
                    threads.start(index, partial(self.submit, item, vae, **options))
                    in_flight += 1
                try:
                    index, handles[index] = threads.next_result()
                    bar.step()
                except DarkroomError as error:
                    failure = failure or error
                in_flight -= 1
        done = [handles[index] for index in sorted(handles)]
        if failure:
            failure.submitted = tuple(handle.id for handle in done)
            raise failure
        return done

    def submit_batch(
        self,
        latents: BatchLike,
        vae: str,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> BatchHandle:
        """Submit up to 10,000 latents in one call: all become jobs, or none.

        Args:
            latents: Latents by name, or in order, each as `submit` takes them; or the path or the
                bytes of a safetensors file with a tensor for each job.
            vae: A name from the catalogue.
            idempotency_key: The same key with the same request gives the same batch. By default
                each call has its own, which it keeps when it has to send its request again.
            **options: See `SubmitOptions`; they hold for every job.

        Raises:
            LatentsError: something that cannot be sent, or files that are scaled differently.
            InvalidRequestError: options or latents that cannot be served; `errors` names each.
        """
        content, settled = read_batch(latents, options)
        query = options_query(vae, settled)
        flow = batch_flows.submit(self._rules, content, query, idempotency_key)
        return BatchHandle(self._engine, self._run(flow))

    def batch(self, batch_id: str) -> BatchHandle:
        """Look a batch up.

        Raises:
            NotFoundError: there is none, or it belongs to another key.
        """
        return BatchHandle(self._engine, self._run(batch_flows.refresh(self._rules, batch_id)))

    def batches(self, limit: int | None = None) -> Iterator[BatchHandle]:
        """Give the batches, newest first, page after page; at most `limit` of them."""
        cursor, left = None, limit
        while left is None or left > 0:
            page = self._run(batch_flows.page(self._rules, left, cursor))
            found = page.results if left is None else page.results[:left]
            yield from (BatchHandle(self._engine, batch) for batch in found)
            cursor, left = page.next, None if left is None else left - len(found)
            if cursor is None:
                return

    def as_completed(
        self,
        jobs: Iterable[JobHandle],
        timeout: float | None = None,
        *,
        progress: bool = False,
    ) -> Iterator[JobHandle]:
        """Give the jobs as they end, in whichever way; `status` tells which.

        Raises:
            WaitTimeoutError: the timeout, which begins with the first item, is over.
        """
        queue = WaitQueue(jobs, self._rules.clock, timeout)
        with (
            progress_bar("developing", len(queue), shown=progress) as bar,
            CallThreads[JobHandle, Job](WAITS_IN_FLIGHT) as threads,
        ):
            while True:
                for handle in queue.finished():
                    bar.step()
                    yield handle
                if not len(queue):
                    return
                for handle, seconds in queue.turns():
                    threads.start(handle, partial(handle.look, seconds, queue.deadline))
                with suppress(Empty):  # then the time is over, and `remaining` says so
                    handle, _ = threads.next_result(queue.remaining())
                    queue.looked(handle)

    def job(self, job_id: str) -> JobHandle:
        """Look a job up.

        Raises:
            NotFoundError: there is none, or it belongs to another key.
        """
        return JobHandle(self._engine, self._run(flows.refresh(self._rules, job_id)))

    def jobs(
        self, status: str | None = None, batch_id: str | None = None, limit: int | None = None
    ) -> Iterator[JobHandle]:
        """Give the jobs, newest first, page after page; at most `limit` of them."""
        cursor, left = None, limit
        while left is None or left > 0:
            page = self._run(flows.page(self._rules, status, batch_id, left, cursor))
            found = page.results if left is None else page.results[:left]
            yield from (JobHandle(self._engine, job) for job in found)
            cursor, left = page.next, None if left is None else left - len(found)
            if cursor is None:
                return

    def vaes(self) -> list[VaeInfo]:
        """Read the catalogue."""
        return self._run(flows.read(self._rules, requests.list_vaes(), VaeList)).results

    def vae(self, name: str) -> VaeInfo:
        """Read one entry of the catalogue, with `config` and `buffers` where they are known.

        Raises:
            NotFoundError: there is none of that name.
        """
        return self._run(flows.read(self._rules, requests.get_vae(name), VaeInfo))

    def queue(self) -> QueueState:
        """Read what waits and who works."""
        return self._run(flows.read(self._rules, requests.get_queue(), QueueState))

    def close(self) -> None:
        """Close the connections."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
