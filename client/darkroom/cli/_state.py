"""What `darkroom submit DIR` has begun, on disk before the service hears of it.

One file for each order in the folder of the results. With it the same command goes on where an
earlier one stopped, however that ended, and submits nothing twice: each batch has had its
idempotency key since before it was first sent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from pydantic import BaseModel, Field, ValidationError

KEY_HOLDS = timedelta(hours=23)
"""So long a service is sure to know an idempotency key."""


class StateError(Exception):
    """The file cannot be used, or another command is using it."""


class Entry(BaseModel):
    """A file of latents as it was when it was planned; its results are named after `name`."""

    path: Path
    name: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path, name: str) -> Entry:
        """Note a file.

        Raises:
            OSError: it cannot be looked at.
        """
        status = path.stat()
        return cls(path=path, name=name, size=status.st_size, mtime_ns=status.st_mtime_ns)

    @property
    def identity(self) -> tuple[Path, int, int]:
        """What makes a file the same one."""
        return self.path, self.size, self.mtime_ns


class Planned(BaseModel):
    """A batch that is to be submitted, or was. `sent_at` is when that was first tried."""

    key: str = Field(default_factory=lambda: uuid4().hex)
    options: dict[str, Any] = {}
    entries: list[Entry]
    sent_at: datetime | None = None
    batch_id: str | None = None
    saved: bool = False

    @property
    def doubtful(self) -> bool:
        """Whether it may have been accepted so long ago that sending it again could repeat it."""
        return (
            self.batch_id is None
            and self.sent_at is not None
            and datetime.now(UTC) - self.sent_at > KEY_HOLDS
        )


class Contents(BaseModel):
    """What is in the file."""

    version: int = 1
    planned: list[Planned] = []


class State:
    """The file of one order: a VAE, options and a service."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found = path.exists()
        try:
            text = path.read_text() if self.found else "{}"
            self._contents = Contents.model_validate_json(text)
        except (OSError, ValidationError) as error:
            raise StateError(f"{path}: cannot be read: {error}") from error

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, order: Mapping[str, Any]) -> Iterator[State]:
        """Open the file of an order for this command alone.

        Raises:
            StateError: it cannot be used, or another command is using it.
        """
        text = json.dumps(order, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        path = folder / f".darkroom-submit-{digest}.json"
        try:
            with path.with_suffix(".lock").open("w") as lock:
                _lock(lock, path)
                yield cls(path)
        except OSError as error:
            raise StateError(f"{error.filename or path}: {error.strerror}") from error

    @property
    def planned(self) -> list[Planned]:
        """The batches, oldest first; `save` after a change."""
        return self._contents.planned

    @property
    def entries(self) -> Iterator[Entry]:
        """All files that are in some batch."""
        return (entry for planned in self.planned for entry in planned.entries)

    def save(self) -> None:
        """Write the file so that it is whole at any moment, and on the disk when this returns."""
        part = self.path.with_suffix(".part")
        with part.open("w") as file:
            file.write(self._contents.model_dump_json(indent=1))
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)


def _lock(file: IO[str], path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: two commands at once are not kept apart
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StateError(f"{path}: another darkroom submit is at work on it") from error
