"""What a family of VAEs has to say: how its latents are laid out, checked and scaled.

A family is one module of this package and one line in its registry. It runs in the API, which has
no torch, and in the worker: it computes with the methods of the tensors it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from darkroom_wire.jobs import Format, JobOptions, Scaling
from darkroom_wire.problems import FieldError

if TYPE_CHECKING:
    from torch import Tensor

PICTURE_FORMATS = (Format.PNG, Format.JPEG, Format.WEBP, Format.SAFETENSORS)


class LatentsError(ValueError):
    """Latents or options that this VAE cannot decode; one entry for each field at fault."""

    def __init__(self, *errors: FieldError) -> None:
        super().__init__("; ".join(f"{error.field}: {error.message}" for error in errors))
        self.errors = errors


@dataclass(frozen=True)
class VaeFacts:
    """What must be known of a VAE to check latents against it.

    `spatial_factor` is the number of pixels on each side that one latent becomes.
    """

    latent_channels: int
    spatial_factor: int


@dataclass(frozen=True)
class Decoded:
    """What a job will give: `count` pictures of `height` by `width` pixels."""

    count: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """The pixels of all pictures together."""
        return self.count * self.height * self.width


@dataclass(frozen=True)
class Factors:
    """The affine map that undoes a VAE's scaling: z / `scale` + `shift`."""

    scale: float = 1.0
    shift: float = 0.0

    def undo(self, latents: Tensor) -> Tensor:
        """Apply the map, leaving out what would change nothing, as the pipelines do."""
        if self.scale != 1.0:
            latents = latents / self.scale
        return latents + self.shift if self.shift else latents


class Family(Protocol):
    """How the latents of one family of models become its VAE's input."""

    @property
    def name(self) -> str:
        """The name in the catalogue."""
        ...

    @property
    def packed(self) -> bool:
        """Whether pipelines of this family pack their latents."""
        ...

    @property
    def formats(self) -> tuple[Format, ...]:
        """What can be made of a decoded tensor, the default first."""
        ...

    def facts(self, config: Mapping[str, Any]) -> VaeFacts:
        """Read what must be known from a VAE's `config.json`."""
        ...

    def plan(self, shape: tuple[int, ...], options: JobOptions, facts: VaeFacts) -> Decoded:
        """Check a shape against the options and say what it will give.

        Raises:
            LatentsError: the shape does not fit the VAE or the options.
        """
        ...

    def unpack(self, latents: Tensor, options: JobOptions, facts: VaeFacts) -> Tensor:
        """Bring latents into the VAE's layout, [B, C, h, w]."""
        ...


def config_factors(config: Mapping[str, Any], options: JobOptions) -> Factors:
    """Say which affine map a job asks for: the VAE's own, none, or the caller's factors."""
    if options.scaling is Scaling.NONE:
        return Factors()
    if options.scaling_factor is not None or options.shift_factor is not None:
        return Factors(options.scaling_factor or 1.0, options.shift_factor or 0.0)
    return Factors(config.get("scaling_factor") or 1.0, config.get("shift_factor") or 0.0)


def picture_facts(config: Mapping[str, Any]) -> VaeFacts:
    """Read the facts of an `AutoencoderKL` or an `AutoencoderTiny`."""
    widths = config.get("decoder_block_out_channels") or config.get("block_out_channels")
    channels = config.get("latent_channels")
    if not (widths and channels):
        raise ValueError("config.json has no latent_channels or no block_out_channels")
    return VaeFacts(channels, 2 ** (len(widths) - 1))


def plan_grid(shape: tuple[int, ...], options: JobOptions, facts: VaeFacts) -> Decoded:
    """Plan latents of shape [B, C, h, w], one picture for each in the batch."""
    if len(shape) != 4:
        raise LatentsError(
            FieldError(
                field="latents",
                message=f"[batch, {facts.latent_channels}, height, width] expected, "
                f"but shape {list(shape)} came",
            )
        )
    count, channels, rows, columns = shape
    check_channels(channels, facts.latent_channels, shape)
    decoded = Decoded(count, rows * facts.spatial_factor, columns * facts.spatial_factor)
    asked = (options.height, options.width)
    if asked != (None, None) and asked != (decoded.height, decoded.width):
        raise LatentsError(
            FieldError(
                field="height",
                message=f"latents of shape {list(shape)} give {decoded.height} x {decoded.width} "
                f"pixels, not {options.height} x {options.width}",
            )
        )
    return decoded


def check_channels(channels: int, expected: int, shape: tuple[int, ...]) -> None:
    """Check a number of channels against the VAE's."""
    if channels != expected:
        raise LatentsError(
            FieldError(
                field="latents",
                message=f"this VAE takes {expected} channels, but shape {list(shape)} has "
                f"{channels}",
            )
        )


@dataclass(frozen=True)
class GridFamily:
    """Pictures from latents laid out as [B, C, h, w]; the parts that most families share."""

    name: str
    packed: bool = field(default=False, init=False)
    formats: tuple[Format, ...] = field(default=PICTURE_FORMATS, init=False)

    def facts(self, config: Mapping[str, Any]) -> VaeFacts:
        """Read `latent_channels` and the number of upsampling steps."""
        return picture_facts(config)

    def plan(self, shape: tuple[int, ...], options: JobOptions, facts: VaeFacts) -> Decoded:
        """Expect [B, C, h, w]."""
        return plan_grid(shape, options, facts)

    def unpack(self, latents: Tensor, options: JobOptions, facts: VaeFacts) -> Tensor:  # noqa: ARG002
        """Leave the latents as they are."""
        return latents
