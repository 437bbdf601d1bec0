"""The decoders of Wan and Qwen-Image, frame by frame or in rows of all frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cached_property, lru_cache, partial
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from darkroom_worker.banded import devices
from darkroom_worker.banded.decoder import nothing
from darkroom_worker.footprint import held_in_pieces, hollow

from . import frames, rows
from .frames import FrameStream
from .protocol import EXACT_STREAMED
from .rows import RowStream

ROWS_PIXELS = 1 << 16
"""From so many pixels of all frames on rows come first on a CPU; fewer are left to the last bit."""

HOLES = 1.3
"""Measured: so much more the bands of rows take in the C library's heap than they have bytes."""

Shape = tuple[int, ...]


class Order(StrEnum):
    """In which order a video is decoded.

    `frames`: one latent frame after the other, to the last bit as `vae.decode`. `rows`: rows of all
    frames, to float rounding; in less memory unless the frames are many and small, and on a CPU in
    float32 in two thirds of the time.
    """

    FRAMES = "frames"
    ROWS = "rows"


class _Stream(Protocol):
    """One of the two orders."""

    def decode(self, z: Tensor, on_step: Callable[[], None], out: Tensor) -> None:
        """Decode latents [B, C, T, h, w] into videos [B, 3, F, H, W]."""

    def steps(self, shape: Shape) -> int:
        """Count the steps for latents of a shape."""
        ...

    def steady(self, shape: Shape) -> Shape:
        """Give smaller latents of which as much is held, but for `kept_bytes` and the result."""
        ...

    def kept_bytes(self, shape: Shape) -> int:
        """Count the bytes that are kept until the end, beside the result."""
        ...


class StreamedDecoder:
    """Decodes as `vae.decode` does; what is kept belongs to a decode, and ends with it."""

    method: Final = EXACT_STREAMED

    def __init__(self, vae: Any) -> None:
        """Take a VAE.

        Raises:
            ValueError: it is not known, or it would decode in tiles.
        """
        if not frames.supports(vae):
            raise ValueError(f"this {type(vae).__name__} is not known to decode frame by frame")
        self._vae = vae
        by_frames = FrameStream(vae)
        self._size: Callable[[Shape], Shape] = by_frames.size
        self._streams: Mapping[Order, _Stream] = {Order.FRAMES: by_frames}
        if rows.supports(vae):
            self._streams = {Order.FRAMES: by_frames, Order.ROWS: RowStream(vae)}
        weight: Tensor = vae.decoder.conv_in.weight
        self._dtype, self._kind = weight.dtype, devices.kind(weight.device)
        self._held: Callable[[Order | None, Shape], int] = lru_cache(256)(self._count_held)

    def modes(self, shape: Shape) -> tuple[Order, ...]:
        """Name the orders in which it decodes latents [B, C, T, h, w], the best first."""
        pixels = math.prod(self._size(shape)[2:])
        at_home = self._kind == "cpu" and self._dtype is torch.float32
        rows_first = at_home and pixels >= ROWS_PIXELS
        return tuple(sorted(self._streams, key=lambda order: (order is Order.ROWS) != rows_first))

    def applies(self, shape: Shape) -> bool:
        """Tell whether latents of a shape are decoded so: always."""
        del shape
        return True

    def is_faster(self, shape: Shape) -> bool:
        """Tell whether this is faster than a decode in one piece: it does less, never more."""
        del shape
        return True

    @torch.inference_mode()
    def decode(
        self, z: Tensor, mode: Order = Order.FRAMES, on_step: Callable[[], None] = nothing
    ) -> Tensor:
        """Decode latents as `vae.decode` takes them.

        Args:
            z: [B, C, T, h, w], in the dtype and on the device of the weights.
            mode: the order.
            on_step: called before each latent frame and band. What it raises ends the decode.

        Returns:
            A video for each: [B, 3, 1 + f (T - 1), H, W], where f is 4 for Wan.
        """
        videos = z.new_empty(self._size(tuple(z.shape)))
        self._streams[mode].decode(z, on_step, videos)
        return videos

    @torch.inference_mode()
    def enter(self, z: Tensor) -> Tensor:
        """Bring the latents of one video, [1, C, T, h, w], to where rows begin: [1, h, T w, C']."""
        return RowStream(self._vae).enter(z, nothing)

    def steps(self, shape: Shape, mode: Order = Order.FRAMES) -> int:
        """Count the steps for latents of a shape [B, C, T, h, w], those of layers among them.

        Layers that are called tell whoever listens to them.
        """
        return self._streams[mode].steps(shape)

    def predicted_bytes(self, shape: Shape, mode: Order = Order.FRAMES) -> int:
        """Predict the peak of memory beyond the weights for latents [B, C, T, h, w].

        The videos are counted in, the latents are not.
        """
        stream, result = self._streams[mode], self._result_bytes(shape)
        few = stream.steady(shape)
        more = result - self._result_bytes(few)
        more += stream.kept_bytes(shape) - stream.kept_bytes(few)
        held = self._held(mode, few) + more
        if mode is Order.FRAMES:
            return held
        if self._kind == "cpu":
            held = round(HOLES * held)
        # The mid block, before that, sees all rows of a frame at once.
        return max(held, self._held(None, shape) + result)

    def _result_bytes(self, shape: Shape) -> int:
        return math.prod(self._size(shape)) * self._dtype.itemsize

    def _count_held(self, mode: Order | None, shape: Shape) -> int:
        """Count what a decode holds; without a mode that of a video's way through the mid block."""
        hollow = self._hollow
        if mode is None:
            return held_in_pieces(hollow.enter, (1, *shape[1:]), self._dtype, self._kind)
        decode = partial(hollow.decode, mode=mode)
        return held_in_pieces(decode, shape, self._dtype, self._kind)

    @cached_property
    def _hollow(self) -> StreamedDecoder:
        return StreamedDecoder(hollow(self._vae))
