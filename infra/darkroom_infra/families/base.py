"""What a family of VAEs has to say: how its latents are laid out, checked and normalized.

A family is one module of this package and one line in its registry. It runs in the API, which has
no torch, and in the worker: it computes with the methods of the tensors it is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from darkroom_wire.jobs import Format, JobOptions, Scaling
from darkroom_wire.problems import FieldError

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]

PICTURE_FORMATS = (Format.PNG, Format.JPEG, Format.WEBP, Format.SAFETENSORS)
RGB = 3


class LatentsError(ValueError):
    """Latents, pictures or options that do not fit a VAE; one entry for each field at fault."""

    def __init__(self, *errors: FieldError) -> None:
        super().__init__("; ".join(f"{error.field}: {error.message}" for error in errors))
        self.errors = errors


def refuse(field: str, message: str) -> LatentsError:
    """Make the error for one field at fault."""
    return LatentsError(FieldError(field=field, message=message))


@dataclass(frozen=True)
class VaeFacts:
    """What must be known of a VAE to check latents against it.

    `spatial_factor` is the number of pixels on each side that one latent becomes,
    `temporal_factor` the number of frames that each latent frame after the first becomes.
    """

    latent_channels: int
    spatial_factor: int
    temporal_factor: int = 1


@dataclass(frozen=True)
class Decoded:
    """What a job will give: `count` pictures, or videos of `frames` frames, in pixels.

    `resized_from` is the height and width that the VAE gives where the pictures are resized.
    """

    count: int
    height: int
    width: int
    frames: int | None = None
    resized_from: tuple[int, int] | None = None

    @property
    def largest(self) -> tuple[int, int]:
        """The height and width at which there are most pixels, before or after a resize."""
        return max((self.height, self.width), self.resized_from or (0, 0), key=math.prod)

    @property
    def pixels(self) -> int:
        """The pixels of all pictures and frames together, where there are most."""
        return self.count * (self.frames or 1) * math.prod(self.largest)


@dataclass(frozen=True)
class Normalization:
    """How a VAE's latents are scaled for the diffusion model, and how that is undone.

    Undone: z / `scale` + `shift`, or with statistics z * `std` / `scale` + `mean`, one value for
    each channel, the second dimension. What would change nothing is left out, as in the pipelines.
    """

    scale: float = 1.0
    shift: float = 0.0
    mean: Tensor | None = None
    std: Tensor | None = None

    def undo(self, latents: Tensor) -> Tensor:
        """Go from the diffusion model's latents to the VAE's."""
        if self.mean is None or self.std is None:
            if self.scale != 1.0:
                latents = latents / self.scale
            return latents + self.shift if self.shift else latents
        latents = latents * along_channels(self.std, latents)
        if self.scale != 1.0:
            latents = latents / self.scale
        return latents + along_channels(self.mean, latents)

    def apply(self, latents: Tensor) -> Tensor:
        """Go from the VAE's latents to the diffusion model's."""
        if self.mean is None or self.std is None:
            if self.shift:
                latents = latents - self.shift
            return latents * self.scale if self.scale != 1.0 else latents
        latents = latents - along_channels(self.mean, latents)
        return latents * self.scale / along_channels(self.std, latents)


def along_channels(values: Tensor, latents: Tensor) -> Tensor:
    """Shape one value for each channel so that it meets the latents' second dimension."""
    return values.to(latents).reshape(1, -1, *(1,) * (latents.ndim - 2))


@dataclass(frozen=True)
class Family:
    """How the latents of one family of models become its VAE's input, and back.

    This class serves pictures from latents laid out as [B, C, h, w], or [C, h, w] for one; what a
    family does otherwise, it overrides. Class attributes, for all VAEs of the family:

    Attributes:
        packed: Whether pipelines of this family pack their latents.
        formats: What can be made of a decoded tensor, the default first.
        fps: Frames per second where a job does not say; None for pictures.
        upcasts: Whether the pipelines heed `force_upcast`, and run such a VAE in float32 where it
            would be float16.
        dimensions: The lengths of an unpacked shape, the batch axis included.
        unscaled_in_float32: Whether the pipelines undo the scaling in float32, and only then cast
            to the VAE's dtype.
        patch: Latents on each side of the squares that the diffusion model works on: the sides of
            its pictures are multiples of `patch` times the spatial factor.
        tiles_frames: Whether its VAEs decode long videos in tiles along time, by default.
    """

    name: str

    packed: ClassVar[bool] = False
    formats: ClassVar[tuple[Format, ...]] = PICTURE_FORMATS
    fps: ClassVar[float | None] = None
    upcasts: ClassVar[bool] = False
    unscaled_in_float32: ClassVar[bool] = False
    dimensions: ClassVar[int] = 4
    patch: ClassVar[int] = 1
    tiles_frames: ClassVar[bool] = False

    def facts(self, config: Mapping[str, Any]) -> VaeFacts:
        """Read what must be known from a VAE's `config.json`.

        Raises:
            ValueError: it is not the configuration of such a VAE.
        """
        widths = read_list(config, "decoder_block_out_channels", "block_out_channels")
        return VaeFacts(read_count(config, "latent_channels"), 2 ** (len(widths) - 1))

    def normalization(
        self, config: Mapping[str, Any], mean: Tensor | None = None, std: Tensor | None = None
    ) -> Normalization:
        """Say how this VAE's latents are scaled; its statistics count where it has them."""
        scale = config.get("scaling_factor") or 1.0
        return Normalization(scale, config.get("shift_factor") or 0.0, mean, std)

    def with_batch(self, shape: Shape, options: JobOptions, facts: VaeFacts) -> Shape:
        """Add the batch axis to latents' shape where it was left out, so that channels are first.

        Any other shape stays as it is, so that `plan` speaks of the shape that came.
        """
        del options
        lacks = len(shape) == self.dimensions - 1 and shape[0] == facts.latent_channels
        return (1, *shape) if lacks else shape

    def plan(self, shape: Shape, options: JobOptions, facts: VaeFacts) -> Decoded:
        """Check latents' shape, batch axis included, and say what it will give.

        Raises:
            LatentsError: the shape does not fit the VAE or the options.
        """
        self.check_grid(shape, facts, "height, width")
        count, _, rows, columns = shape
        decoded = Decoded(count, rows * facts.spatial_factor, columns * facts.spatial_factor)
        self.check_size(decoded, shape, options, facts)
        return decoded

    def to_vae(
        self, latents: Tensor, options: JobOptions, facts: VaeFacts, normalization: Normalization
    ) -> Tensor:
        """Bring latents of a shape that `plan` accepts into the VAE's layout and scale."""
        del options, facts
        return normalization.undo(latents)

    def decode_arguments(self, latents: Tensor, config: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Give what the VAE's `decode` takes after the latents."""
        del latents, config
        return ()

    def decoded(self, decoded: Tensor) -> Tensor:
        """Bring what the VAE gave into [B, 3, H, W], or for video [B, 3, F, H, W]."""
        return decoded

    def plan_encode(self, shape: Shape, facts: VaeFacts) -> Shape:
        """Say which latents will be made of pixels of shape [B, 3, H, W].

        Raises:
            LatentsError: the shape does not fit the VAE.
        """
        if len(shape) != 4 or shape[1] != RGB:
            raise refuse("picture", f"[batch, 3, height, width] expected, not {list(shape)}")
        count, _, height, width = shape
        self.check_sides(height, width, facts)
        factor = facts.spatial_factor
        return (count, facts.latent_channels, height // factor, width // factor)

    def fitted(self, shape: Shape, facts: VaeFacts) -> Shape:
        """Round the sides of pixels [..., H, W] down to multiples that the VAE encodes."""
        if len(shape) < 2:
            return shape
        *leading, height, width = shape
        side = self.side(facts)
        return (*leading, height - height % side, width - width % side)

    def pixels(self, pixels: Tensor) -> Tensor:
        """Bring pixels of a shape that `plan_encode` accepts into the layout the VAE encodes."""
        return pixels

    def from_vae(self, latents: Tensor, normalization: Normalization) -> Tensor:
        """Bring what the VAE encoded into the scale and an unpacked layout that `plan` accepts."""
        return normalization.apply(latents)

    def side(self, facts: VaeFacts) -> int:
        """The pixels of which the sides of a picture are multiples."""
        return facts.spatial_factor * self.patch

    def check_grid(self, shape: Shape, facts: VaeFacts, axes: str) -> None:
        """Check dimensions and channels of unpacked latents; `axes` names those after the channels.

        Raises:
            LatentsError: this is no such grid, or has other channels than the VAE.
        """
        expected = f"[batch, {facts.latent_channels}, {axes}]"
        if len(shape) != self.dimensions:
            raise refuse("latents", f"{expected} expected, but shape {list(shape)} came")
        if shape[1] != facts.latent_channels:
            raise refuse(
                "latents",
                f"this VAE takes {facts.latent_channels} channels, {expected}, but shape "
                f"{list(shape)} has {shape[1]}",
            )

    def check_size(
        self, decoded: Decoded, shape: Shape, options: JobOptions, facts: VaeFacts
    ) -> None:
        """Check what latents give against the size that was asked for, where one was.

        The pipelines round down a size that their latents cannot have; that is no contradiction.

        Raises:
            LatentsError: another size was asked for.
        """
        if options.height is None or options.width is None:
            return
        side = self.side(facts)
        asked = (options.height - options.height % side, options.width - options.width % side)
        if (decoded.height, decoded.width) not in {asked, (options.height, options.width)}:
            raise refuse(
                "height",
                f"latents of shape {list(shape)} give {decoded.height} x {decoded.width} pixels, "
                f"not {options.height} x {options.width}",
            )

    def check_sides(self, height: int, width: int, facts: VaeFacts) -> None:
        """Check that pixels can be encoded without a rest.

        Raises:
            LatentsError: a side is no multiple of the family's.
        """
        side = self.side(facts)
        if min(height, width) < side or height % side or width % side:
            raise refuse(
                "picture",
                f"height and width must be multiples of {side} for this VAE, not {height} x "
                f"{width}",
            )


def read_count(config: Mapping[str, Any], *names: str) -> int:
    """Read a positive whole number that a `config.json` has under one of these names.

    Raises:
        ValueError: it has none.
    """
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    raise ValueError(f"config.json has no {' and no '.join(names)}")


def read_list(config: Mapping[str, Any], *names: str) -> Sequence[Any]:
    """Read a list with something in it that a `config.json` has under one of these names.

    Raises:
        ValueError: it has none.
    """
    for name in names:
        value = config.get(name)
        if isinstance(value, list | tuple) and value:
            return value
    raise ValueError(f"config.json has no {' and no '.join(names)}")


def plan(family: Family, shape: Shape, options: JobOptions, facts: VaeFacts) -> Decoded:
    """Plan latents that may lack the batch axis.

    Raises:
        LatentsError: the shape does not fit the VAE or the options.
    """
    return family.plan(family.with_batch(shape, options, facts), options, facts)


def choose_normalization(own: Normalization, options: JobOptions) -> Normalization:
    """Say which scaling a job asks for: the VAE's own, none, or the caller's factors."""
    if options.scaling is Scaling.NONE:
        return Normalization()
    if options.scaling_factor is not None or options.shift_factor is not None:
        return Normalization(options.scaling_factor or 1.0, options.shift_factor or 0.0)
    return own
