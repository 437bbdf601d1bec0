"""From latents to a decoded tensor, from that to pixels, and back: the mathematics of a job.

Shapes: latents [B, …] in any layout of their family; the VAE's input [B, C, h, w] or
[B, C, T, h, w]; decoded [B, 3, H, W] or [B, 3, F, H, W] in about [-1, 1].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from darkroom_infra.families import choose_normalization
from darkroom_infra.records import Rendering
from darkroom_wire.jobs import JobOptions, Task

from .banded.videos import longest_in_one_piece
from .loading import DTYPES, LoadedVae
from .pictures import prepare_pixels
from .planning import Plan, plan

WHOLE = "whole"
TEMPORAL_TILES = "temporal-tiles"

Way = Mapping[str, str | int]
"""How something was made, for the job's provenance: `method`, `mode`, `batch_size`."""


@dataclass(frozen=True)
class Means:
    """What a decode may use, and whom it tells how far it is.

    Attributes:
        budget: The bytes of the device's memory.
        scarce: A decode has run out of memory: anything smaller is welcome.
        on_plan: Told how many parts there are, and of how many steps each, where it can be said.
        on_step: Called at each step; what it raises ends the decode.
    """

    budget: int = 1 << 62
    scarce: bool = False
    on_plan: Callable[[int, int | None], None] = lambda _parts, _steps: None
    on_step: Callable[[], None] = lambda: None


ANY_MEANS = Means()


def check(vae: LoadedVae, tensor: Tensor, options: JobOptions) -> Tensor:
    """Check latents or pixels, now that the VAE is known for certain, and bring them into shape.

    The batch axis is added where it was left out; pixels become [B, 3, (F,) H, W] in [-1, 1].

    Raises:
        LatentsError: they do not fit the VAE.
    """
    family = vae.entry.layout
    shape = tuple(tensor.shape)
    if options.task is Task.ENCODE:
        pixels = prepare_pixels(tensor, family.side(vae.facts))
        family.plan_encode(tuple(pixels.shape), vae.facts)
        return pixels
    shape = family.with_batch(shape, options, vae.facts)
    family.plan(shape, options, vae.facts)
    return tensor.reshape(shape)


def decode(
    vae: LoadedVae, latents: Tensor, options: JobOptions, means: Means = ANY_MEANS
) -> tuple[Tensor, Way]:
    """Decode checked latents as the family's pipeline does, and say how it went about it.

    The cast comes before the scaling, as in the pipelines, whose latents have the VAE's dtype;
    where they keep float32, it comes after.
    """
    family, dtype = vae.entry.layout, DTYPES[vae.dtype]
    latents = latents.to(vae.device, torch.float32 if family.unscaled_in_float32 else dtype)
    normalization = choose_normalization(vae.normalization, options)
    grid = family.to_vae(latents, options, vae.facts, normalization).to(dtype)
    planned = plan(vae, tuple(grid.shape), means.budget, scarce=means.scarce)
    decoded = _decode_parts(vae, grid, planned, means)
    decoded = family.decoded(decoded)
    expected = family.plan(tuple(latents.shape), options, vae.facts)
    if decoded.shape[-2:] != (expected.height, expected.width):
        # Only Sana's family plans another size than its latents give.
        decoded = _resize_and_crop(decoded, expected.height, expected.width)
    return decoded, _describe(vae, grid, planned)


def _decode_parts(vae: LoadedVae, grid: Tensor, planned: Plan, means: Means) -> Tensor:
    """Decode so many pictures together as was planned, and those after them."""
    parts = torch.split(grid, planned.at_once)
    mode, exact = planned.mode, vae.exact
    steps = exact.steps(tuple(parts[0].shape), mode) if exact and mode else None
    means.on_plan(len(parts), steps)

    def decode_part(part: Tensor) -> Tensor:
        if exact is not None and mode is not None:
            return exact.decode(part, mode, means.on_step)
        arguments = vae.entry.layout.decode_arguments(part, vae.config)
        decoded: Tensor = vae.module.decode(part, *arguments, return_dict=False)[0]  # type: ignore[operator]
        return decoded

    first = decode_part(parts[0])
    if len(parts) == 1:
        return first
    decoded = first.new_empty(len(grid), *first.shape[1:])
    decoded[: len(first)] = first
    del first
    for place, part in zip(torch.split(decoded, planned.at_once)[1:], parts[1:], strict=True):
        place.copy_(decode_part(part))
    return decoded


def _describe(vae: LoadedVae, grid: Tensor, planned: Plan) -> Way:
    if planned.mode is None or vae.exact is None:
        return {"method": _method(vae, grid), "batch_size": planned.at_once}
    mode = {"mode": planned.mode.value} if len(vae.exact.modes(tuple(grid.shape))) > 1 else {}
    return {"method": vae.exact.method, **mode, "batch_size": planned.at_once}


def _resize_and_crop(decoded: Tensor, height: int, width: int) -> Tensor:
    """Resize pictures so that they cover a size, and cut out their middle.

    As diffusers' `PixArtImageProcessor.resize_and_crop_tensor`, but for the sizes where that loses
    a row or column to rounding and gives a picture of one pixel.
    """
    *_, rows, columns = decoded.shape
    ratio = max(height / rows, width / columns)
    size = (max(height, int(rows * ratio)), max(width, int(columns * ratio)))
    resized = functional.interpolate(decoded, size=size, mode="bilinear", align_corners=False)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return resized[:, :, top : top + height, left : left + width]


def _method(vae: LoadedVae, grid: Tensor) -> str:
    """Tell tiles along time from a decode in one piece."""
    longest = longest_in_one_piece(vae.module)
    return WHOLE if longest is None or grid.shape[2] <= longest else TEMPORAL_TILES


def encode(vae: LoadedVae, pixels: Tensor, options: JobOptions) -> tuple[Tensor, Way]:
    """Encode checked pixels [B, 3, (F,) H, W] in [-1, 1]: the distribution's mode, scaled."""
    family = vae.entry.layout
    pixels = family.pixels(pixels.to(vae.device, DTYPES[vae.dtype]))
    encoded = vae.module.encode(pixels)  # type: ignore[operator]
    if hasattr(encoded, "latent_dist"):
        latents = encoded.latent_dist.mode()
    else:  # tiny and deep-compression autoencoders have no distribution
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent
    scaled = family.from_vae(latents, choose_normalization(vae.normalization, options))
    return scaled, {"method": WHOLE, "batch_size": len(pixels)}


def render(decoded: Tensor, rendering: Rendering) -> Tensor:
    """Bring a decoded tensor into the form in which it leaves the device.

    Returns:
        `decoded` as it is; `unit`: [B, 3, H, W] or [B, F, 3, H, W] in [0, 1]; `pixels`: uint8,
        [B, H, W, 3] or [B, F, H, W, 3].
    """
    if rendering is Rendering.DECODED:
        return decoded
    frames = decoded.transpose(1, 2) if decoded.ndim == 5 else decoded
    if rendering is Rendering.UNIT:
        return _to_unit(frames)
    return to_pixels(frames)


def to_pixels(frames: Tensor) -> Tensor:
    """Turn pictures [..., 3, H, W] in about [-1, 1] into uint8 pixels, [..., H, W, 3].

    The same operations in the same dtypes as diffusers' `VaeImageProcessor.postprocess`, so that
    no pixel differs: x / 2 + 0.5 and the clamp in the VAE's dtype, the rounding in float32. One
    picture after the other, so that no second copy of a video exists in floating point.
    """
    *leading, channels, height, width = frames.shape
    pixels = torch.empty(
        (*leading, height, width, channels), dtype=torch.uint8, device=frames.device
    )
    for index in itertools.product(*map(range, leading)):
        unit = _to_unit(frames[index]).permute(1, 2, 0)
        pixels[index] = (unit.float() * 255).round().to(torch.uint8)
    return pixels


def _to_unit(decoded: Tensor) -> Tensor:
    return (decoded * 0.5 + 0.5).clamp(0, 1)
