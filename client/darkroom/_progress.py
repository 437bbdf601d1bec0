"""A progress bar on stderr, where that is a terminal or a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bar:
    """A bar that may not be shown: then its calls do nothing."""

    def __init__(self, progress: Progress | None = None, task: TaskID | None = None) -> None:
        self._progress = progress
        self._task = task

    def step(self, count: int = 1) -> None:
        """One more is done, or several."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, count)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar away while the block prints lines of its own."""
        if self._progress is None:
            yield
            return
        self._progress.live.transient = True
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.live.transient = False
            self._progress.start()


@contextmanager
def progress_bar(label: str, total: int, *, shown: bool) -> Iterator[Bar]:
    """Show a bar while the block runs."""
    if not shown:
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield Bar()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # Nothing is redirected: what goes to stdout must not end up in the bar's stderr.
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as progress:
        yield Bar(progress, progress.add_task(label, total=total))
