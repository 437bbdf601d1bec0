"""Which way to decode: the fastest, and of that the largest batch, that is predicted to fit.

Memory is that beyond the weights of the VAEs that are loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from darkroom_infra.memory import MemoryNeed, gigabytes

from .loading import LoadedVae

Shape = tuple[int, ...]

BELOW = 0.75
"""How far the line is drawn below the needs: they are not quite linear, and predictions err."""

SIDES = ((512, 32), (1024, 64))
FRAMES = (9, 17)
"""The sides and lengths of latents through whose needs a line is drawn: as large as those that may
not fit, for small ones are not on it, and HunyuanVideo decodes more than four frames in tiles. High
and narrow they need least where rows stream through a decoder.
"""


class DoesNotFitError(Exception):
    """Latents that cannot be decoded within a budget in any way. The text has the figures."""


@dataclass(frozen=True)
class Plan:
    """How to decode: in one piece, where there is no mode, and so many pictures together."""

    mode: StrEnum | None
    at_once: int


def plan(vae: LoadedVae, shape: Shape, budget: int, *, scarce: bool = False) -> Plan:
    """Plan a decode of the VAE's input of a shape [B, C, (T,) h, w].

    Args:
        vae: with its predictions.
        shape: of the latents.
        budget: bytes that the decode may take.
        scarce: a decode that was planned has run out of memory: decode in the smallest pieces.

    Raises:
        DoesNotFitError: nothing is predicted to take so little.
    """
    least = None
    for mode in _modes(vae, shape, scarce=scarce):
        for at_once in _halves(1 if scarce else shape[0]):
            needed = predicted_bytes(vae, mode, shape, at_once)
            if needed is None or needed <= budget:
                return Plan(mode, at_once)
            least = needed if least is None else min(least, needed)
    raise DoesNotFitError(
        f"{gigabytes(least or 0)} are needed at least, and there are {gigabytes(budget)} for it"
    )


def predicted_bytes(vae: LoadedVae, mode: StrEnum | None, shape: Shape, at_once: int) -> int | None:
    """Predict what a way takes at most, the results counted in; None where nobody knows."""
    part = (at_once, *shape[1:])
    if mode is not None and vae.exact is not None:
        needed = vae.exact.predicted_bytes(part, mode)
        if at_once == shape[0]:
            return needed
    whole = vae.whole.predict(part)
    if whole is None:
        return None
    if mode is None or vae.exact is None:
        needed = whole.peak_bytes
    return needed + whole.result_bytes * (shape[0] - at_once) // at_once


def _modes(vae: LoadedVae, shape: Shape, *, scarce: bool) -> tuple[StrEnum | None, ...]:
    """Order the ways, the best first."""
    exact = vae.exact
    if exact is None or not exact.applies(shape):
        return (None,)
    if scarce:
        one = (1, *shape[1:])
        return tuple(sorted(exact.modes(one), key=partial(exact.predicted_bytes, one)))
    if exact.is_faster(shape):
        return exact.modes(shape)
    return (None, *exact.modes(shape))


def _halves(count: int) -> Iterator[int]:
    while count > 1:
        yield count
        count = (count + 1) // 2
    yield 1


def least_need(vae: LoadedVae) -> MemoryNeed | None:
    """Draw a line through the least that pictures or videos need; None where nobody knows."""
    channels = vae.config.get("z_dim") or vae.config.get("latent_channels")
    if not isinstance(channels, int):
        return None
    lengths: tuple[Shape, ...] = ((),)
    if vae.has_frames:
        lengths = ((1,),) if vae.entry.layout.fps is None else tuple((frames,) for frames in FRAMES)
    small, large = ((1, channels, *lengths[0], *sides) for sides in SIDES)
    points = [_least(vae, small), _least(vae, large)]
    if len(lengths) > 1:
        points.append(_least(vae, (1, channels, *lengths[1], *SIDES[0])))
    return _line([point for point in points if point is not None])


@dataclass(frozen=True)
class _Point:
    """What one picture or video of so many pixels and frames needs, and its own bytes."""

    pixels: int
    frames: int
    bytes: int
    result_bytes: int


def _least(vae: LoadedVae, shape: Shape) -> _Point | None:
    whole = vae.whole.predict(shape)
    if whole is None:
        return None
    ways = [whole.peak_bytes]
    if vae.exact is not None and vae.exact.applies(shape):
        ways += [vae.exact.predicted_bytes(shape, mode) for mode in vae.exact.modes(shape)]
    _, _, *frames, height, width = whole.shape
    return _Point(height * width, math.prod(frames), min(ways), whole.result_bytes)


def _line(points: list[_Point]) -> MemoryNeed | None:
    """Tell pixels and frames apart in what is needed, and leave out what does not grow with them.

    Where a need grows faster than the pixels, as with attention that keeps all its weights, it is
    drawn below itself too: what is refused for its sake can never be decoded.
    """
    if len(points) < 2:
        return None
    small, large, *longer = points
    slope = (large.bytes - small.bytes) / (large.pixels - small.pixels)
    slope = min(slope, small.bytes / small.pixels)
    per_frame_pixel = 0.0
    for long in longer:
        growth = (long.bytes - small.bytes) / (long.frames - small.frames) / small.pixels
        per_frame_pixel = min(max(0.0, growth), slope / small.frames)
    return MemoryNeed(
        per_pixel=BELOW * (slope - small.frames * per_frame_pixel),
        per_frame_pixel=BELOW * per_frame_pixel,
        per_result=small.result_bytes / (small.pixels * small.frames),
    )
