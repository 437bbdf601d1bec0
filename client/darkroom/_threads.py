"""A few daemon threads that carry out calls: work that may be left behind at any moment."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Generic, Self, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class CallThreads(Generic[K, V]):
    """Threads that carry out calls and give their results as they come.

    Not a `ThreadPoolExecutor`: that one is joined when the interpreter ends, so that Ctrl-C would
    last as long as the longest wait in flight.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._threads: list[Thread] = []
        self._calls: SimpleQueue[tuple[K, Callable[[], V]] | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[K, V | BaseException]] = SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while True:
            try:
                self._calls.get_nowait()
            except Empty:
                break
        for _ in self._threads:
            self._calls.put(None)

    def start(self, key: K, call: Callable[[], V]) -> None:
        """Have a call carried out; its result comes under the key."""
        self._calls.put((key, call))
        if len(self._threads) < self._most:
            thread = Thread(target=self._work, name="darkroom-call", daemon=True)
            self._threads.append(thread)
            thread.start()

    def next_result(self, timeout: float | None = None) -> tuple[K, V]:
        """Give the next result as it comes. A call's error is raised here.

        Raises:
            queue.Empty: none came in time.
        """
        key, result = self._results.get(timeout=timeout)
        if isinstance(result, BaseException):
            raise result
        return key, result

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            key, call = item
            try:
                self._results.put((key, call()))
            except BaseException as error:  # noqa: BLE001 - it is raised again by next_result
                self._results.put((key, error))
