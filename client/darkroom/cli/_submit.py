"""The command `submit`: files to jobs, and with --wait jobs to files."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from darkroom._async_client import AsyncClient
from darkroom._errors import (
    DarkroomError,
    NotAuthorizedError,
    OverloadedError,
    ServiceUnreachableError,
)
from darkroom._handles import AsyncJobHandle
from darkroom._latents import check_file
from darkroom._options import options_query
from darkroom._progress import Bar, progress_bar
from darkroom._retry import RetryPolicy
from darkroom._waiting import SUBMITS_IN_FLIGHT
from darkroom.cli._exits import ExitStatus, say, say_error
from darkroom.cli._jobs import IMPATIENT
from darkroom.cli._output import print_json
from darkroom_wire.jobs import Job

_HOPELESS = (ServiceUnreachableError, NotAuthorizedError, OverloadedError)
_EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "video/mp4": "mp4",
    "application/zip": "zip",
    "application/x-safetensors": "safetensors",
}


@dataclass(frozen=True)
class Order:
    """What the command line asks for."""

    files: tuple[Path, ...]
    vae: str
    options: Mapping[str, Any]
    wait: bool
    folder: Path
    as_json: bool


@dataclass
class Progress:
    """What has been done so far; Ctrl-C may end it at any point."""

    jobs: dict[int, AsyncJobHandle] = field(default_factory=dict)
    exit_with: ExitStatus = ExitStatus.OK
    hopeless: bool = False

    def note(self, error: DarkroomError, about: str) -> bool:
        """Say what went wrong with one file or job; tell whether others would fare no better."""
        self.exit_with = max(self.exit_with, say_error(error, about))
        self.hopeless = self.hopeless or isinstance(error, _HOPELESS)
        return self.hopeless

    def handles(self) -> list[AsyncJobHandle]:
        """The jobs that were submitted, in the order of their files."""
        return [self.jobs[index] for index in sorted(self.jobs)]


def submit_files(order: Order) -> None:
    """Submit files, wait if asked to, print what came of it, and exit."""
    options_query(order.vae, order.options)
    for file in order.files:
        check_file(file, order.options.get("task"))
    if order.wait:
        make_folder(order.folder)
    progress = Progress()
    try:
        asyncio.run(_work(order, progress))
    except KeyboardInterrupt as error:
        say(f"interrupted; {_submitted(progress)} (darkroom list shows all)")
        raise typer.Exit(ExitStatus.INTERRUPTED) from error
    except DarkroomError as error:
        progress.note(error, "")
        say(_submitted(progress))
    if order.as_json:
        print_json([handle.info for handle in progress.handles()])
    raise typer.Exit(progress.exit_with)


async def _work(order: Order, progress: Progress) -> None:
    retry = RetryPolicy() if order.wait else IMPATIENT
    async with AsyncClient(retry=retry) as client:
        with progress_bar("submitting", len(order.files), shown=order.wait) as bar:
            await _submit_all(client, order, progress, bar)
        if not order.wait:
            _print_ids(order, progress)
            return
        stems = unique_stems([file.stem for file in order.files])
        names = {handle: stems[index] for index, handle in progress.jobs.items()}
        with progress_bar("developing", len(names), shown=True) as bar:
            async for handle in client.as_completed(progress.handles()):
                await _save(handle, names[handle], order, progress, bar)
                bar.step()


async def _submit_all(client: AsyncClient, order: Order, progress: Progress, bar: Bar) -> None:
    """Submit each file. A file that is refused does not keep the others from being submitted."""
    waiting = iter(enumerate(order.files))

    async def submit_in_turn() -> None:
        for index, file in waiting:
            if progress.hopeless:
                return
            try:
                progress.jobs[index] = await client.submit(file, order.vae, **order.options)
            except DarkroomError as error:
                if not progress.hopeless:
                    with bar.aside():
                        progress.note(error, str(file))
            bar.step()

    await asyncio.gather(*(submit_in_turn() for _ in range(SUBMITS_IN_FLIGHT)))


async def _save(
    handle: AsyncJobHandle, stem: str, order: Order, progress: Progress, bar: Bar
) -> None:
    """Save a finished job's outputs, and say which files that made."""
    try:
        outputs = await handle.download()
    except ServiceUnreachableError:
        raise
    except DarkroomError as error:
        with bar.aside():
            progress.note(error, stem)
        return
    for path, content in zip(output_paths(handle.info, stem, order.folder), outputs, strict=True):
        try:
            await asyncio.to_thread(path.write_bytes, content)
        except OSError as error:
            what = f"cannot be written: {error.strerror} - job {handle.id} keeps its result"
            with bar.aside():
                say(f"{path}: {what}")
            progress.exit_with = max(progress.exit_with, ExitStatus.USAGE)
            return
        with bar.aside():
            typer.echo(f"wrote {path} (job {handle.id})", err=order.as_json)


def output_paths(job: Job, stem: str, folder: Path) -> list[Path]:
    """Name the files that a finished job's outputs become."""
    endings = [_EXTENSIONS.get(output.content_type, "bin") for output in job.outputs]
    if len(endings) == 1:
        return [folder / f"{stem}.{endings[0]}"]
    return [folder / f"{stem}-{index}.{ending}" for index, ending in enumerate(endings)]


def unique_stems(names: Sequence[str]) -> list[str]:
    """Name results after their files; a name that is taken gets a number."""
    stems: dict[str, None] = {}
    numbers: dict[str, int] = {}
    for name in names:
        stem = name
        while stem in stems:
            numbers[name] = numbers.get(name, 1) + 1
            stem = f"{name}_{numbers[name]}"
        stems[stem] = None
    return list(stems)


def _print_ids(order: Order, progress: Progress) -> None:
    if not order.as_json:
        for index in sorted(progress.jobs):
            typer.echo(f"{progress.jobs[index].id}  {order.files[index]}")


def make_folder(folder: Path) -> None:
    """Make the folder of the results, or exit."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        say(f"{folder}: cannot be made: {error.strerror}")
        raise typer.Exit(ExitStatus.USAGE) from error


def _submitted(progress: Progress) -> str:
    ids = " ".join(handle.id for handle in progress.handles())
    return f"jobs submitted: {ids}" if ids else "no job is known to be submitted"
