"""Exact decoding of videos by the VAEs of Wan and Qwen-Image, in pieces that pass one by one.

Causal convolutions see a frame and the two before it. So frames can pass through them one after
the other, or rows of all frames, as rows of a picture do in `banded`.
"""

from torch import nn

from .decoder import Order, StreamedDecoder
from .frames import supports
from .protocol import EXACT_STREAMED, ExactDecoder

__all__ = ["EXACT_STREAMED", "ExactDecoder", "Order", "StreamedDecoder", "stream"]


def stream(vae: nn.Module) -> ExactDecoder[Order] | None:
    """Make the streaming decoder of a VAE, where there is one."""
    return StreamedDecoder(vae) if supports(vae) else None
