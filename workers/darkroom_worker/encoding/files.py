"""Files that were encoded: what is known of them, and where they are until they are stored."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO


class EncodeError(ValueError):
    """A tensor that cannot become a file of the format, with the reason."""


@dataclass(frozen=True)
class EncodedOutput:
    """One file, which belongs to whoever got it: closing it frees its memory or disk space.

    Attributes:
        file: open for reading, at its start. A picture is in memory; everything else is a
            temporary file that has no name any more, so that even a killed worker leaves none.
        bytes: its size.
        sha256: the hash of its content, in hexadecimal.
        width: of its pictures, in pixels.
        height: of its pictures, in pixels.
        extension: of its name, without a dot.
        content_type: its media type.
        num_frames: of a video.
        fps: of a video, the frames per second at which it plays or, for an archive of frames, was
            meant to play.
    """

    file: BinaryIO
    bytes: int
    sha256: str
    width: int
    height: int
    extension: str
    content_type: str
    num_frames: int | None = None
    fps: float | None = None


def measured(
    file: BinaryIO,
    *,
    width: int,
    height: int,
    extension: str,
    content_type: str,
    num_frames: int | None = None,
    fps: float | None = None,
) -> EncodedOutput:
    """Count and hash what was written, in pieces, and go back to the file's start."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.seek(0)
    return EncodedOutput(
        file, size, sha256, width, height, extension, content_type, num_frames, fps
    )


@contextmanager
def closed_on_error(file: BinaryIO) -> Iterator[BinaryIO]:
    """Close a file if the block does not come to its end."""
    try:
        yield file
    except BaseException:
        file.close()
        raise


@contextmanager
def temporary_file() -> Iterator[BinaryIO]:
    """Open a file on disk that has no name; it stays open unless the block raises."""
    with closed_on_error(tempfile.TemporaryFile()) as file:
        yield file
