"""What carries a flow's steps out: once in the caller's thread, once as a coroutine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

import httpx

from darkroom import _transport as transport
from darkroom._errors import DarkroomError
from darkroom._flows import Flow, Pause, Rules, Step
from darkroom._requests import Answer, Request
from darkroom._settings import Settings

DEFAULT_TIMEOUT = 60.0
"""Seconds without a byte after which a request is given up."""

T = TypeVar("T")
Outcome: TypeAlias = Answer | DarkroomError | None


class Engine:
    """Carries flows out in the caller's thread. Threads may share one."""

    def __init__(
        self,
        settings: Settings,
        rules: Rules,
        timeout: float,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.settings = settings
        self.rules = rules
        self._timeout = timeout
        self._sleep = sleep
        self._service = httpx.Client(**transport.service_arguments(settings, timeout))
        self._store = httpx.Client(**transport.store_arguments(timeout))

    def run(self, flow: Flow[T]) -> T:
        """Carry a flow out to its end."""
        outcome: Outcome = None
        while True:
            try:
                step = _next_step(flow, outcome)
            except StopIteration as stop:
                result: T = stop.value
                return result
            try:
                outcome = self._carry_out(step)
            except DarkroomError as error:
                outcome = error

    def close(self) -> None:
        """Close the connections."""
        self._service.close()
        self._store.close()

    def _carry_out(self, step: Step) -> Answer | None:
        if isinstance(step, Pause):
            self._sleep(step.seconds)
            return None
        with transport.translated(self.settings, step):
            http = self._store if step.to_store else self._service
            if step.save_to is None:
                return transport.read_answer(http.request(**self._arguments(step)))
            with http.stream(**self._arguments(step)) as response:
                if transport.is_for_file(response):
                    with transport.file_of(step.save_to) as file:
                        for chunk in response.iter_bytes():
                            file.write(chunk)
                    return transport.without_body(response)
                response.read()
                return transport.read_answer(response)

    def _arguments(self, request: Request) -> transport.Arguments:
        return transport.request_arguments(self.settings, request, self._timeout)


class AsyncEngine:
    """Carries flows out as coroutines."""

    def __init__(
        self,
        settings: Settings,
        rules: Rules,
        timeout: float,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.settings = settings
        self.rules = rules
        self._timeout = timeout
        self._sleep = sleep
        self._service = httpx.AsyncClient(**transport.service_arguments(settings, timeout))
        self._store = httpx.AsyncClient(**transport.store_arguments(timeout))

    async def run(self, flow: Flow[T]) -> T:
        """Carry a flow out to its end."""
        outcome: Outcome = None
        while True:
            try:
                step = _next_step(flow, outcome)
            except StopIteration as stop:
                result: T = stop.value
                return result
            try:
                outcome = await self._carry_out(step)
            except DarkroomError as error:
                outcome = error

    async def close(self) -> None:
        """Close the connections."""
        await self._service.aclose()
        await self._store.aclose()

    async def _carry_out(self, step: Step) -> Answer | None:
        if isinstance(step, Pause):
            await self._sleep(step.seconds)
            return None
        with transport.translated(self.settings, step):
            http = self._store if step.to_store else self._service
            if step.save_to is None:
                return transport.read_answer(await http.request(**self._arguments(step)))
            async with http.stream(**self._arguments(step)) as response:
                if transport.is_for_file(response):
                    with transport.file_of(step.save_to) as file:
                        async for chunk in response.aiter_bytes():
                            await asyncio.to_thread(file.write, chunk)
                    return transport.without_body(response)
                await response.aread()
                return transport.read_answer(response)

    def _arguments(self, request: Request) -> transport.Arguments:
        return transport.request_arguments(self.settings, request, self._timeout)


def _next_step(flow: Flow[T], outcome: Outcome) -> Step:
    """Tell a flow how its last step ended and take the next one; StopIteration has the result."""
    if isinstance(outcome, DarkroomError):
        return flow.throw(outcome)
    return flow.send(outcome)
