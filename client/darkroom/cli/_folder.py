"""The command `submit` for folders: files to batches, batches to files, also after a stop."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import typer

from darkroom._async_client import AsyncClient
from darkroom._batch_files import implied_by_file, join, read_tensor
from darkroom._batch_handles import AsyncBatchHandle
from darkroom._errors import DarkroomError, InvalidRequestError, LatentsError
from darkroom._handles import AsyncJobHandle
from darkroom._latents import FILE_SUFFIXES
from darkroom._options import options_query
from darkroom._progress import Bar, progress_bar
from darkroom._retry import RetryPolicy
from darkroom._settings import load_settings
from darkroom._transport import file_of
from darkroom.cli._exits import ExitStatus, say
from darkroom.cli._jobs import IMPATIENT
from darkroom.cli._output import print_json
from darkroom.cli._state import Entry, Planned, State, StateError
from darkroom.cli._submit import (
    Order,
    Progress,
    make_folder,
    output_paths,
    unique_stems,
)
from darkroom_wire.jobs import Job, Task

BATCH_JOBS = 1000
BATCH_BYTES = 64 * 1024 * 1024
SAVES_IN_FLIGHT = 8
GO_ON = "the same command goes on where this one stopped"

_SCALING = ("scaling", "scaling_factor", "shift_factor")
_NAMED = "latents."


def submit_folders(order: Order, *, resume: bool) -> None:
    """Submit all latents of folders, wait if asked to, save what comes of it, and exit."""
    options_query(order.vae, order.options)
    if order.options.get("task") == Task.ENCODE:
        raise LatentsError("folders hold latents; to encode pictures, name the files")
    files = list(_find(order.files))
    make_folder(order.folder)
    progress, handles = Progress(), dict[str, AsyncBatchHandle]()
    try:
        with State.opened(order.folder, _identity(order)) as state:
            if resume and not state.found:
                say(f"{order.folder}: there is nothing to resume: no such order was begun here")
                raise typer.Exit(ExitStatus.USAGE)
            _plan(files, order, state, progress)
            asyncio.run(_work(order, state, progress, handles))
            _tell(order, state, handles)
    except KeyboardInterrupt as error:
        say(f"interrupted; {GO_ON}")
        raise typer.Exit(ExitStatus.INTERRUPTED) from error
    except StateError as error:
        say(str(error))
        raise typer.Exit(ExitStatus.USAGE) from error
    except DarkroomError as error:
        progress.note(error, "")
        say(GO_ON)
    raise typer.Exit(progress.exit_with)


def _find(given: Sequence[Path]) -> Iterator[Path]:
    """List the files, and those in folders that are known by their suffix, in the names' order."""
    for path in given:
        if not path.is_dir():
            yield path.absolute()
            continue
        found = [
            file.absolute()
            for file in sorted(path.iterdir())
            if file.suffix.lower() in FILE_SUFFIXES[Task.DECODE]
            and not file.name.startswith(".")
            and file.is_file()
        ]
        if not found:
            endings = ", ".join(FILE_SUFFIXES[Task.DECODE])
            raise LatentsError(f"{path}: no files here that end in {endings}")
        yield from found


def _identity(order: Order) -> Mapping[str, Any]:
    """Tell which orders are the same: those that a repeated command would give."""
    given = {name: value for name, value in order.options.items() if value is not None}
    return {"url": load_settings(None, None).url, "vae": order.vae, "options": given}


def _plan(files: Sequence[Path], order: Order, state: State, progress: Progress) -> None:
    """Put files that are in no batch yet into new ones: as they are scaled, and not too large."""
    known = {entry.identity for entry in state.entries}
    taken = [entry.name for entry in state.entries]
    new: list[Path] = []
    groups: defaultdict[str, list[Path]] = defaultdict(list)
    options: dict[str, Mapping[str, Any]] = {}
    told = any(order.options.get(name) is not None for name in _SCALING)
    for file in dict.fromkeys(files):
        try:
            if Entry.of(file, "").identity in known:
                continue
            implied = {} if told else implied_by_file(file)
        except OSError as error:
            progress.note(LatentsError(f"cannot be read: {error.strerror}"), str(file))
            continue
        except LatentsError as error:
            progress.note(error, "")
            continue
        new.append(file)
        groups[repr(implied)].append(file)
        options[repr(implied)] = implied
    stems = unique_stems([*taken, *(_stem(file) for file in new)])[len(taken) :]
    names = dict(zip(new, stems, strict=True))
    for scaling, members in groups.items():
        entries = (Entry.of(file, names[file]) for file in members)
        for some in _parts(entries):
            state.planned.append(Planned(options=dict(options[scaling]), entries=some))
    state.save()


def _stem(file: Path) -> str:
    """Name results after a file, in characters that any answer can hold."""
    return os.fsencode(file.stem).decode("utf-8", "replace")


def _parts(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    """Divide files into batches."""
    part: list[Entry] = []
    size = 0
    for entry in entries:
        if part and (len(part) == BATCH_JOBS or size + entry.size > BATCH_BYTES):
            yield part
            part, size = [], 0
        part.append(entry)
        size += entry.size
    if part:
        yield part


async def _work(
    order: Order, state: State, progress: Progress, handles: dict[str, AsyncBatchHandle]
) -> None:
    retry = RetryPolicy() if order.wait else IMPATIENT
    async with AsyncClient(retry=retry) as client:
        waiting = [planned for planned in state.planned if planned.batch_id is None]
        total = sum(len(planned.entries) for planned in waiting)
        with progress_bar("submitting", total, shown=order.wait) as bar:
            for planned in waiting:
                await _submit(client, planned, order, state, progress, handles)
                bar.step(len(planned.entries))
        if not order.wait:
            return
        unsaved = [planned for planned in state.planned if planned.batch_id and not planned.saved]
        total = sum(len(planned.entries) for planned in unsaved)
        inputs = {entry.path for entry in state.entries}
        with progress_bar("developing", total, shown=True) as bar:
            for planned in unsaved:
                await _follow(client, planned, order, inputs, progress, bar, handles)
                state.save()


async def _submit(
    client: AsyncClient,
    planned: Planned,
    order: Order,
    state: State,
    progress: Progress,
    handles: dict[str, AsyncBatchHandle],
) -> None:
    """Submit a batch, without the files that the service refuses."""
    if planned.doubtful:
        what = "it may have been accepted more than a day ago, so it is not sent again"
        progress.note(LatentsError(f"{what}: see darkroom list, then remove {state.path}"), "")
        return
    while planned.entries:
        sent_before = planned.sent_at is not None
        try:
            content = await asyncio.to_thread(_content, planned)
        except LatentsError as error:
            progress.note(error, "")
            if sent_before:
                return  # without this file it would be another request under the same key
            planned.entries = [entry for entry in planned.entries if _is_readable(entry)]
            continue
        planned.sent_at = planned.sent_at or datetime.now(UTC)
        state.save()
        options = {**order.options, **planned.options}
        try:
            handle = await client.submit_batch(
                content, order.vae, idempotency_key=planned.key, **options
            )
        except InvalidRequestError as error:
            if not _take_out(planned, error, progress):
                if not sent_before:
                    state.planned.remove(planned)
                    state.save()
                raise
            state.save()
            continue
        planned.batch_id = handle.id
        handles[handle.id] = handle
        state.save()
        return
    state.planned.remove(planned)
    state.save()


def _content(planned: Planned) -> bytes:
    tensors = []
    for entry in planned.entries:
        if not _is_readable(entry):
            raise LatentsError(f"{entry.path}: it was changed or removed since it was planned")
        tensor, _ = read_tensor(entry.path, entry.name)
        tensors.append(tensor)
    return join(tensors)


def _is_readable(entry: Entry) -> bool:
    try:
        if Entry.of(entry.path, entry.name) != entry:
            return False
        read_tensor(entry.path, entry.name)
    except (OSError, LatentsError):
        return False
    return True


def _take_out(planned: Planned, error: InvalidRequestError, progress: Progress) -> bool:
    """Take the files at fault out of a batch of which nothing was accepted, if it was files."""
    faults = {
        fault.field.removeprefix(_NAMED): fault.message
        for fault in error.errors
        if fault.field.startswith(_NAMED)
    }
    at_fault = [entry for entry in planned.entries if entry.name in faults]
    for entry in at_fault:
        progress.note(LatentsError(faults[entry.name]), str(entry.path))
    planned.entries = [entry for entry in planned.entries if entry.name not in faults]
    planned.key, planned.sent_at = uuid4().hex, None
    return bool(at_fault)


async def _follow(
    client: AsyncClient,
    planned: Planned,
    order: Order,
    inputs: set[Path],
    progress: Progress,
    bar: Bar,
    handles: dict[str, AsyncBatchHandle],
) -> None:
    """Save the results of a batch's jobs as they end."""
    batch_id = planned.batch_id or ""
    try:
        handle = handles[batch_id] = handles.get(batch_id) or await client.batch(batch_id)
    except InvalidRequestError:
        raise
    except DarkroomError as error:
        if progress.note(error, f"batch {batch_id}"):
            raise
        return
    saving: set[asyncio.Task[bool]] = set()
    saved = 0
    try:
        async for job in handle.as_completed():
            if len(saving) == SAVES_IN_FLIGHT:
                done, saving = await asyncio.wait(saving, return_when=asyncio.FIRST_COMPLETED)
                saved += sum(task.result() for task in done)
            saving.add(asyncio.create_task(_save(job, order, inputs, progress, bar)))
        saved += sum(await asyncio.gather(*saving))
    finally:
        for task in saving:
            task.cancel()
    planned.saved = saved == len(planned.entries)


async def _save(
    job: AsyncJobHandle, order: Order, inputs: set[Path], progress: Progress, bar: Bar
) -> bool:
    """Save what a job made, unless it is there from an earlier command; tell whether it is."""
    name = job.info.name or job.id
    paths = output_paths(job.info, name, order.folder)
    try:
        if not inputs.isdisjoint(path.absolute() for path in paths):
            raise LatentsError("the result would replace latents; choose another folder with -o")
        if not paths or not _are_there(job.info, paths):
            outputs = await job.download()
            for path, content in zip(paths, outputs, strict=True):
                await asyncio.to_thread(_write, path, content)
    except OSError as error:
        with bar.aside():
            say(f"{error.filename or order.folder}: cannot be written: {error.strerror}")
        progress.exit_with = max(progress.exit_with, ExitStatus.USAGE)
        return False
    except DarkroomError as error:
        with bar.aside():
            if progress.note(error, name):
                raise
        return False
    finally:
        bar.step()
    return True


def _are_there(job: Job, paths: Sequence[Path]) -> bool:
    return all(
        path.is_file() and path.stat().st_size == output.bytes
        for path, output in zip(paths, job.outputs, strict=True)
    )


def _write(path: Path, content: bytes) -> None:
    with file_of(path) as file:
        file.write(content)


def _tell(order: Order, state: State, handles: Mapping[str, AsyncBatchHandle]) -> None:
    """Say what has become of the batches."""
    if order.as_json:
        print_json([handle.info for handle in handles.values()])
    elif order.wait:
        done = sum(len(planned.entries) for planned in state.planned if planned.saved)
        total = sum(len(planned.entries) for planned in state.planned)
        typer.echo(f"{done} of {total} saved in {order.folder}")
    else:
        for planned in state.planned:
            if planned.batch_id:
                typer.echo(f"{planned.batch_id}  {len(planned.entries)} jobs")
