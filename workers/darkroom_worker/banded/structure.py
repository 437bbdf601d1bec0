"""Which decoders are known: every block is checked, for what is not known cannot be exact."""

from __future__ import annotations

from types import ModuleType

from torch import nn

from . import pictures, videos
from .layers import Structure


def supports(vae: nn.Module) -> bool:
    """Tell whether a VAE's decoder consists of exactly the blocks that are known here."""
    module = _module(vae)
    return module is not None and module.supports(vae)


def structure(vae: nn.Module) -> Structure:
    """List a decoder's layers.

    Raises:
        ValueError: `supports` says no to it.
    """
    module = _module(vae)
    if module is None or not module.supports(vae):
        raise ValueError(f"the decoder of this {type(vae).__name__} is not known block by block")
    found: Structure = module.structure(vae)
    return found


def _module(vae: nn.Module) -> ModuleType | None:
    return next((each for each in (pictures, videos) if type(vae) in each.CLASSES), None)
