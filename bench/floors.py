"""What a decode takes at least: its operations, and the bytes that have to go through memory.

Both are counted on the meta device, where tensors have shapes but no numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from darkroom_worker.banded import BandedDecoder, Mode


@dataclass(frozen=True)
class Work:
    """The work of one decode.

    Attributes:
        whole_flops: Operations of diffusers' decode.
        flops: The same picture's with convolutions of repeated pixels merged: the fewest we know.
        bytes: What convolutions read and write, each map once: all else is fused with them.
    """

    whole_flops: int
    flops: int
    bytes: int

    def json(self) -> dict[str, Any]:
        """Give the figures as they are written."""
        return asdict(self)

    def milliseconds(self, rates: Mapping[str, float], dtype: str) -> dict[str, float]:
        """Give the floors of time on a device of these rates, in TFLOP/s and TB/s."""
        return {
            "arithmetic": self.flops / rates[dtype] / 1e9,
            "memory": self.bytes / rates["copy"] / 1e9,
        }


def count(vae: AutoencoderKL, latents: Tensor) -> Work:
    """Count the work of a VAE on the meta device for latents there."""
    with torch.inference_mode():
        with FlopCounterMode(display=False) as whole, _Traffic(vae) as traffic:
            vae.decode(latents, return_dict=False)
        with FlopCounterMode(display=False) as least:
            BandedDecoder(vae).decode(latents, Mode.FAST)
    return Work(whole.get_total_flops(), least.get_total_flops(), traffic.bytes)


class _Traffic:
    """Counts the bytes of the convolutions of a module while it is entered."""

    def __init__(self, module: nn.Module) -> None:
        self.bytes = 0
        self._repeated = {
            id(layer.conv) for layer in module.modules() if type(layer).__name__ == "Upsample2D"
        }
        self._layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        self._hooks = [layer.register_forward_hook(self._add) for layer in self._layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _add(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # Repeated pixels need not be read: there are a quarter as many.
        read = inputs[0].nbytes // (4 if id(layer) in self._repeated else 1)
        weights = sum(parameter.nbytes for parameter in layer.parameters(recurse=False))
        self.bytes += read + output.nbytes + weights
