"""PNG, some rows at a time: filtered by numpy, compressed by ISA-L, both without Python's lock.

Source: Portable Network Graphics (PNG) Specification, Third Edition, W3C: chunks (5), filters (9)
and compression (10).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO, Final

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
BITS: Final = 8
TRUE_COLOUR: Final = 2
CHANNELS: Final = 3

SUB, UP, AVERAGE = 1, 2, 3
FILTERS: Final = np.array([SUB, UP, AVERAGE], np.uint8)
"""Paeth would gain one percent of the size for a quarter more time."""

LEVEL: Final = 2
"""Of ISA-L's 0 to 3: 3 takes longer and is no smaller for pictures."""

STRIPE_BYTES: Final = 96 << 10
"""So many bytes of rows are filtered at once: with what is made of them they stay in a cache."""


def write_png(file: IO[bytes], pixels: Bytes) -> None:
    """Write one picture, [H, W, 3], as a PNG file."""
    height, width, _ = pixels.shape
    file.write(SIGNATURE)
    header = struct.pack(">IIBBBBB", width, height, BITS, TRUE_COLOUR, 0, 0, 0)
    _write_chunk(file, b"IHDR", header)
    compressor = isal_zlib.compressobj(LEVEL)
    for rows in _filtered(pixels.reshape(height, width * CHANNELS)):
        if compressed := compressor.compress(rows):
            _write_chunk(file, b"IDAT", compressed)
    _write_chunk(file, b"IDAT", compressor.flush())
    _write_chunk(file, b"IEND", b"")


def _write_chunk(file: IO[bytes], kind: bytes, content: bytes) -> None:
    file.write(struct.pack(">I", len(content)) + kind)
    file.write(content)
    file.write(struct.pack(">I", isal_zlib.crc32(content, isal_zlib.crc32(kind))))


def _filtered(picture: Bytes) -> Iterator[Bytes]:
    """Yield stripes of rows, each row after the number of its filter, until the next is asked for.

    Each row has the filter whose output, taken as signed bytes, has the least sum of magnitudes:
    the heuristic that the specification recommends (12.7).
    """
    height, length = picture.shape
    count = min(height, max(1, STRIPE_BYTES // length))
    # The row above the stripe comes first, and a black pixel before each row.
    padded = np.zeros((1 + count, CHANNELS + length), np.uint8)
    candidates = np.empty((len(FILTERS), count, length), np.uint8)
    scratch = np.empty((count, length), np.uint8)
    filtered = np.empty((count, 1 + length), np.uint8)
    for start in range(0, height, count):
        rows = picture[start : start + count]
        size = len(rows)
        padded[1 : 1 + size, CHANNELS:] = rows
        left, above = padded[1 : 1 + size, :length], padded[:size, CHANNELS:]
        sub, up, average = candidates[:, :size]
        np.subtract(rows, left, out=sub)
        np.subtract(rows, above, out=up)
        np.subtract(rows, _average(left, above, average, scratch[:size]), out=average)
        sums = [_magnitude(candidate, scratch[:size]) for candidate in (sub, up, average)]
        best = np.argmin(sums, axis=0)
        filtered[:size, 0] = FILTERS[best]
        filtered[:size, 1:] = candidates[best, np.arange(size)]
        yield filtered[:size]
        padded[0] = padded[size]


def _average(a: Bytes, b: Bytes, out: Bytes, scratch: Bytes) -> Bytes:
    """Give (a + b) // 2 in eight bits: what both have, and half of what one of them has."""
    np.right_shift(np.bitwise_xor(a, b, out=scratch), 1, out=scratch)
    np.bitwise_and(a, b, out=out)
    return np.add(out, scratch, out=out)


def _magnitude(row: Bytes, scratch: Bytes) -> NDArray[np.uint32]:
    np.minimum(row, np.negative(row, out=scratch), out=scratch)
    total: NDArray[np.uint32] = scratch.sum(axis=1, dtype=np.uint32)
    return total
