"""A batch's results as one zip, written while it is sent: memory does not grow with its size.

The files are stored as they are, for pictures and videos do not become smaller. Objects are fetched
in pieces, a few of them ahead of what is being sent.
"""

from __future__ import annotations

import asyncio
import json
import zipfile
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Final

from starlette.concurrency import run_in_threadpool

from darkroom_infra.ledger import Ledger
from darkroom_infra.records import (
    AsyncRecordsClient,
    BatchRecord,
    JobRecord,
    StoredOutput,
    transitions,
)
from darkroom_wire.jobs import Status

from .file_names import FileNames

PIECE_BYTES: Final = 1024 * 1024
PIECES_AHEAD: Final = 4
PAGE: Final = 100
FAILURES: Final = "failures"


@dataclass(frozen=True)
class _Piece:
    """A part of an output: all of it, where it is small."""

    record: JobRecord
    output: StoredOutput
    path: str
    begin: int

    @property
    def end(self) -> int:
        return min(self.begin + PIECE_BYTES, self.output.bytes)


class Archive:
    """The archive of one batch, for one download."""

    def __init__(self, records: AsyncRecordsClient, ledger: Ledger, batch: BatchRecord) -> None:
        self._records = records
        self._ledger = ledger
        self._batch = batch
        self._names = FileNames()
        self._failures_name = self._names.take(FAILURES, ".json")
        self._failures: list[dict[str, object]] = []

    async def content(self) -> AsyncIterator[bytes]:
        """Yield the archive from its first byte to its last.

        Raises:
            RecordsUnavailableError, StoreError, FileNotFoundError: the archive stays incomplete,
                which whoever receives it can tell.
        """
        sink = _Sink()
        file: IO[bytes] | None = None
        with zipfile.ZipFile(sink, "w") as archive:
            try:
                async for piece, content in self._fetched():
                    if piece.begin == 0:
                        file = self._open(archive, piece, content)
                    if file is not None:
                        _write(file, piece, content)
                        yield sink.take()
            finally:
                if file is not None:
                    file.close()
            if self._failures:
                text = json.dumps(self._failures, indent=1, ensure_ascii=False)
                archive.writestr(self._failures_name, text)
        yield sink.take()

    def _open(
        self, archive: zipfile.ZipFile, piece: _Piece, content: bytes | None
    ) -> IO[bytes] | None:
        if content is None:
            self._note(piece.record, "its results are gone")
            return None
        return archive.open(_entry(piece), "w")

    async def _fetched(self) -> AsyncIterator[tuple[_Piece, bytes | None]]:
        """Yield the pieces in order, with None for what is gone; the next ones are on the way."""
        ahead: deque[tuple[_Piece, asyncio.Task[bytes | None]]] = deque()
        try:
            async for piece in self._pieces():
                ahead.append((piece, asyncio.create_task(run_in_threadpool(self._fetch, piece))))
                if len(ahead) == PIECES_AHEAD:
                    first, task = ahead.popleft()
                    yield first, await task
            while ahead:
                first, task = ahead.popleft()
                yield first, await task
        finally:
            for _, task in ahead:
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    async def _pieces(self) -> AsyncIterator[_Piece]:
        cursor = ""
        while page := await self._records.run(
            transitions.members(self._batch.spec.id, cursor, PAGE)
        ):
            for record in page:
                for piece in self._pieces_of(record):
                    yield piece
            cursor = page[-1].spec.id

    def _pieces_of(self, record: JobRecord) -> list[_Piece]:
        status = record.state.status
        if status is not Status.SUCCEEDED or record.manifest is None:
            error = record.manifest.error if record.manifest else None
            self._note(record, error.detail if error else f"it is {status}")
            return []
        outputs = record.manifest.outputs
        pieces = []
        for index, output in enumerate(outputs):
            number = f"-{index}" if len(outputs) > 1 else ""
            ending = number + PurePosixPath(output.key).suffix
            path = self._names.take(record.spec.name or record.spec.id, ending)
            pieces += [
                _Piece(record, output, path, begin) for begin in range(0, output.bytes, PIECE_BYTES)
            ]
        return pieces

    def _fetch(self, piece: _Piece) -> bytes | None:
        try:
            return self._ledger.store.get(piece.output.key, piece.begin, piece.end)
        except FileNotFoundError:
            return None

    def _note(self, record: JobRecord, why: str) -> None:
        self._failures.append(
            {
                "id": record.spec.id,
                "name": record.spec.name,
                "status": record.state.status.value,
                "detail": why,
            }
        )


class _Sink:
    """Takes what a zip writer writes; it cannot go back in it."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, content: bytes, /) -> int:
        """Take some bytes."""
        self._written += content
        return len(content)

    def flush(self) -> None:
        """Do nothing: all is taken at once."""

    def close(self) -> None:
        """Do nothing."""

    def take(self) -> bytes:
        """Give what was written since the last time."""
        taken = bytes(self._written)
        self._written.clear()
        return taken


def _write(file: IO[bytes], piece: _Piece, content: bytes | None) -> None:
    if content is None or len(content) != piece.end - piece.begin:
        raise FileNotFoundError(f"{piece.output.key} from byte {piece.begin}")
    file.write(content)
    if piece.end == piece.output.bytes:
        file.close()


def _entry(piece: _Piece) -> zipfile.ZipInfo:
    ended = piece.record.manifest.finished_at if piece.record.manifest else None
    entry = zipfile.ZipInfo(piece.path, ended.timetuple()[:6] if ended else (1980, 1, 1, 0, 0, 0))
    entry.file_size = piece.output.bytes  # beyond 2 GiB, it gets a header that can say so
    entry.external_attr = 0o644 << 16
    return entry
