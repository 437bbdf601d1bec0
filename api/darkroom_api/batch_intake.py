"""From the request for a batch to what workers can do: its header is read, its values never are."""

from __future__ import annotations

import hashlib
import tempfile
import unicodedata
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import BinaryIO, Final

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from darkroom_wire.jobs import (
    MAX_BATCH_HEADER_BYTES,
    MAX_BATCH_JOBS,
    MAX_NAME,
    Format,
    JobOptions,
    Latents,
    Task,
)
from darkroom_wire.problems import FieldError
from darkroom_wire.tensors import SafetensorsHeader, Span, TensorFormatError, check_shape

from .errors import (
    InvalidRequestError,
    TooLargeError,
    UnavailableError,
    UnsupportedMediaError,
)
from .intake import (
    SAFETENSORS_TYPES,
    Rules,
    check_announced,
    check_latents,
    check_length,
    check_options,
    media_type,
)

WRITTEN_AT_ONCE: Final = 1024 * 1024
MAX_FAULTS: Final = 20
"""So many tensors at fault are named; whoever mends them asks again."""

_UNPRINTABLE: Final = frozenset({"Cc", "Cs"})
"""Control characters, and halves of characters that no text can hold."""

Faults = tuple[FieldError, ...]


@dataclass(frozen=True)
class Received:
    """A body on disk."""

    file: BinaryIO
    size: int
    sha256: str


@dataclass(frozen=True)
class Member:
    """One tensor of a batch. `offset` is where its values begin in the file."""

    name: str
    latents: Latents
    offset: int


@dataclass(frozen=True)
class BatchSubmission:
    """What passed every check: options, and the tensors in the order of their values."""

    options: JobOptions
    format: Format
    members: tuple[Member, ...]


def check_type(request: Request) -> None:
    """Check that the body says that it is a safetensors file.

    Raises:
        UnsupportedMediaError: it says something else.
    """
    if media_type(request) not in SAFETENSORS_TYPES:
        raise UnsupportedMediaError(
            f"Content-Type {request.headers.get('content-type')!r}: one of "
            f"{', '.join(SAFETENSORS_TYPES)} expected"
        )


@asynccontextmanager
async def receive(request: Request, limit: int) -> AsyncIterator[Received]:
    """Receive a body into a file, which is gone when the block ends.

    Raises:
        TooLargeError: over the limit, by its announced or by its real length.
        MalformedRequestError: a length that is no number.
        UnavailableError: the disk is full.
    """
    check_announced(request, limit)
    digest, size, waiting = hashlib.sha256(), 0, bytearray()
    with tempfile.TemporaryFile(prefix="darkroom-") as file:

        def write(content: bytes) -> None:
            try:
                file.write(content)
                file.flush()
            except OSError as error:
                raise UnavailableError(f"the body cannot be kept: {error.strerror}") from error
            digest.update(content)

        async for chunk in request.stream():
            size += len(chunk)
            check_length(size, limit)
            waiting += chunk
            if len(waiting) >= WRITTEN_AT_ONCE:
                await run_in_threadpool(write, bytes(waiting))
                waiting.clear()
        await run_in_threadpool(write, bytes(waiting))
        yield Received(file, size, digest.hexdigest())


def prepare(received: Received, options: JobOptions, rules: Rules) -> BatchSubmission:
    """Check a whole batch: options, names, and each tensor as if it were a job's.

    Raises:
        InvalidRequestError: names every tensor at fault, up to some number.
        TooLargeError: more tensors than a batch may have, or more pixels than a job may have.
    """
    if options.task is Task.ENCODE:
        raise InvalidRequestError.of(
            FieldError(field="task", message="a batch is decoded; submit pictures as single jobs")
        )
    chosen = check_options(options, rules.vae)
    spans, start = _read_spans(received)
    _check_members(spans, options, rules)
    members = tuple(
        Member(
            name=span.info.name,
            latents=Latents(shape=span.info.shape, dtype=span.info.dtype, bytes=span.info.nbytes),
            offset=start + span.begin,
        )
        for span in spans
    )
    return BatchSubmission(options, chosen, members)


def _read_spans(received: Received) -> tuple[list[Span], int]:
    """Find the tensors, in the order of their values, and where the values begin."""
    received.file.seek(0)
    head = received.file.read(8 + MAX_BATCH_HEADER_BYTES)
    try:
        header = SafetensorsHeader.read(head, received.size, MAX_BATCH_HEADER_BYTES)
    except TensorFormatError as error:
        raise _refuse({"": [str(error)]}) from error
    _check_count(len(header.names))
    spans: list[Span] = []
    faults: dict[str, list[str]] = {}
    for name in header.names:
        try:
            _check_name(name)
            span = header.span(name)
            check_shape(span.info.shape)
            spans.append(span)
        except TensorFormatError as error:
            faults[name] = [str(error)]
    if faults:
        raise _refuse(faults)
    try:
        header.check_coverage(spans)
    except TensorFormatError as error:
        raise _refuse({"": [str(error)]}) from error
    return sorted(spans, key=lambda span: span.begin), header.start


def _check_count(count: int) -> None:
    if count == 0:
        raise _refuse({"": ["the file has no tensors"]})
    if count > MAX_BATCH_JOBS:
        message = f"the file has {count} tensors, at most {MAX_BATCH_JOBS} are one batch"
        raise TooLargeError(message, [FieldError(field="latents", message=message)])


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= MAX_NAME:
        raise TensorFormatError(
            f"a name of {len(name)} characters: 1 to {MAX_NAME} expected, for jobs are named so"
        )
    if any(unicodedata.category(character) in _UNPRINTABLE for character in name):
        raise TensorFormatError(f"a name with control characters: {name!r}")


def _check_members(spans: Iterable[Span], options: JobOptions, rules: Rules) -> None:
    """Check each tensor against the VAE; those of one shape at once."""
    known: dict[tuple[int, ...], Faults] = {}
    faults: dict[str, list[str]] = {}
    too_large = True
    for span in spans:
        shape = span.info.shape
        if shape not in known and len(faults) <= MAX_FAULTS:
            try:
                check_latents(span.info, options, rules)
                known[shape] = ()
            except TooLargeError as error:
                known[shape] = error.errors
            except InvalidRequestError as error:
                known[shape] = error.errors
                too_large = False
        if found := known.get(shape, ()):
            faults[span.info.name] = [
                fault.message if fault.field == "latents" else f"{fault.field}: {fault.message}"
                for fault in found
            ]
    if faults and too_large:
        refusal = _refuse(faults)
        raise TooLargeError(refusal.detail, refusal.errors)
    if faults:
        raise _refuse(faults)


def _refuse(faults: Mapping[str, list[str]]) -> InvalidRequestError:
    """Name each tensor at fault; '' stands for the file."""
    shown = [
        FieldError(field=_field(name), message=message)
        for name, messages in faults.items()
        for message in messages
    ][:MAX_FAULTS]
    if len(faults) > MAX_FAULTS:
        rest = f"{len(faults)} or more tensors are at fault; these are the first {MAX_FAULTS}"
        shown.append(FieldError(field="latents", message=rest))
    return InvalidRequestError.of(*shown)


def _field(name: str) -> str:
    """Say which tensor, in characters that any answer can hold."""
    sane = name.encode("utf-8", "backslashreplace").decode()[:MAX_NAME]
    return f"latents.{sane}" if sane else "latents"
