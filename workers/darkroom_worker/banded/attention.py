"""The attention of the mid block: every pixel looks at every other, a few at a time."""

from __future__ import annotations

from collections.abc import Callable

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional

from . import devices
from .devices import Kind
from .norm import Moments

QUERY_PRODUCTS = 1 << 32
"""About how many multiplications a step does: a fraction of a second on one core."""

QUERIES = 1 << 13
"""How many queries at least a step has on a GPU: with 64 for each multiprocessor they fill it."""

SCORES = 1 << 27
"""How many products of queries and keys a step may have there beyond that.

They only exist where PyTorch has no fused attention for the device.
"""


def query_rows(height: int, width: int, channels: int, device: Kind) -> int:
    """Choose how many rows of a map [height, width] ask at once."""
    if device == "gpu":
        return min(height, -(-max(QUERIES, SCORES // (height * width)) // width))
    return max(1, min(height, QUERY_PRODUCTS // (2 * channels * height * width * width)))


def attend(
    pixels: Tensor, layer: Attention, step: Callable[[], None], *, causal: bool = False
) -> None:
    """Add to pixels, [B, H, W, C], in place what they see in each other.

    Keys and values exist for all pixels, 2 B H W C numbers; queries only for a few rows at a time.

    Where it is causal, rows are frames, of which each sees itself and those before it. It asks
    them alone: a mask of all pixels by all pixels need not exist.
    """
    batch, height, width, channels = pixels.shape
    moments = Moments()
    moments.add(pixels)
    normalize = moments.affine(layer.group_norm)

    def heads(tokens: Tensor) -> Tensor:
        return tokens.reshape(batch, -1, layer.heads, channels // layer.heads).transpose(1, 2)

    normalized = normalize(pixels)
    keys, values = heads(_linear(layer.to_k, normalized)), heads(_linear(layer.to_v, normalized))
    del normalized
    rows = 1 if causal else query_rows(height, width, channels, devices.kind(pixels.device))
    for start in range(0, height, rows):
        step()
        band = pixels[:, start : start + rows]
        queries = heads(_linear(layer.to_q, normalize(band)))
        last = (start + 1) * width if causal else height * width
        seen = functional.scaled_dot_product_attention(
            queries, keys[:, :, :last], values[:, :, :last]
        )
        band += _linear(layer.to_out[0], seen.transpose(1, 2).reshape(band.shape))


def _linear(layer: nn.Linear, tokens: Tensor) -> Tensor:
    return functional.linear(tokens, layer.weight, layer.bias)
