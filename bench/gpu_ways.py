"""The ways of decoding that `bench.gpu` compares: diffusers' and ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from darkroom_worker.banded import BandedDecoder, Mode, fused
from darkroom_worker.banded.graphs import GraphedDecoder, Recorder, Recording, record_cuda

WHOLE, CHANNELS_LAST, TILED, COMPILED = (
    "diffusers, whole",
    "diffusers, channels_last",
    "diffusers, tiled",
    "diffusers, torch.compile",
)
PEERS = (WHOLE, CHANNELS_LAST, TILED)

PLAIN, GRAPH = "without kernels", "as a graph"
"""What is said of ours beside the mode."""

TILE = 512
"""The side of diffusers' tiles: what the configuration of Stable Diffusion's VAE asks for."""

UNBOUNDED = 1 << 62

Decode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Way:
    """A way of decoding.

    Attributes:
        decode: Decodes latents.
        predict: Predicts the bytes that it takes for latents of a shape, where it can.
        graphs: What it records and keeps between decodes.
    """

    decode: Decode
    predict: Callable[[tuple[int, ...]], int] | None = None
    graphs: GraphedDecoder | None = None

    @property
    def kept_bytes(self) -> int:
        """The bytes that it holds between decodes."""
        return 0 if self.graphs is None else self.graphs.nbytes

    @property
    def is_recorded(self) -> bool:
        """Whether it is what it is called: what cannot be recorded is decoded as ever."""
        return self.graphs is None or len(self.graphs) > 0

    def clear(self) -> None:
        """Let go of what is kept."""
        if self.graphs is not None:
            self.graphs.clear()


def ways(vaes: Callable[[], AutoencoderKL]) -> Mapping[str, Way]:
    """Make all ways but the compiled one, with VAEs of the same weights."""
    whole_vae, rearranged, tiled = (vaes() for _ in PEERS)
    rearranged.to(memory_format=torch.channels_last)
    tiled.enable_tiling()
    tiled.tile_sample_min_size, tiled.tile_latent_min_size = TILE, TILE // 8
    peers = dict(zip(PEERS, map(whole, (whole_vae, rearranged, tiled)), strict=True))
    decoder = BandedDecoder(whole_vae)
    return {
        **peers,
        **{mode.value: banded(decoder, mode) for mode in Mode},
        title(Mode.FAST, PLAIN): banded(decoder, Mode.FAST, fused.disabled),
        **{title(mode, GRAPH): graphed(decoder, mode) for mode in (Mode.FAST, Mode.BALANCED)},
    }


def title(mode: Mode, more: str) -> str:
    """Name a way of ours."""
    return f"{mode.value}, {more}"


def whole(vae: AutoencoderKL) -> Way:
    """Decode as diffusers does."""
    return Way(lambda z: vae.decode(z, return_dict=False)[0])


def banded(
    decoder: BandedDecoder,
    mode: Mode,
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Way:
    """Decode in bands."""

    def decode(z: Tensor) -> Tensor:
        with within():
            return decoder.decode(z, mode)

    return Way(decode, lambda shape: decoder.predicted_bytes(shape, mode))


def graphed(decoder: BandedDecoder, mode: Mode) -> Way:
    """Decode in bands, from the second picture of a size on as a CUDA graph."""
    made = GraphedDecoder(decoder, UNBOUNDED, record=_record)
    return Way(lambda z: made.decode(z, mode), graphs=made)


def _record(decode: Decode, z: Tensor) -> Recording:
    record: Recorder = record_cuda if z.is_cuda else _stand_in
    return record(decode, z)


def _stand_in(decode: Decode, z: Tensor) -> Recording:
    """Decode anew at each replay, where there are no graphs: only to see that everything runs."""
    latents = z.clone()
    pictures = decode(latents)

    def replay() -> None:
        pictures.copy_(decode(latents))

    return Recording(latents, pictures, replay, latents.nbytes + pictures.nbytes)
