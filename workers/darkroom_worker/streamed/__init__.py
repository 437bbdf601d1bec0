"""Exact decoding of videos: the frames of `vae.decode`, but they stream through the decoder.

Causal convolutions see a frame and the two before it. So frames can pass through them one after
the other, as rows of a picture do in `banded`.
"""

from torch import nn

from . import frames
from .frames import FrameStream
from .protocol import EXACT_STREAMED, ExactDecoder

__all__ = ["EXACT_STREAMED", "ExactDecoder", "FrameStream", "stream"]


def stream(vae: nn.Module) -> ExactDecoder | None:
    """Make the streaming decoder of a VAE, where there is one."""
    return FrameStream(vae) if frames.supports(vae) else None
