"""An exact decode in bands: as `vae.decode`, but in less time and a fraction of the memory.

The decoders of `AutoencoderKL` and `AutoencoderKLFlux2` are convolutions, which see one row ahead,
and GroupNorms, which see the whole picture, but only through a mean and a variance for each group
of channels. So rows stream through the layers in bands that fit a cache, and stop only where a
mean and a variance have to be known. `BandedDecoder` does so; a `Mode` says how much memory it may
use to compute less.

`AutoencoderKLHunyuanVideo` decodes videos by the same blocks, which see two frames back besides. A
row of a video is that of all its frames, and all else stays as it is.

`AutoencoderTiny` has convolutions alone. `TinyDecoder` has its rows pass from the latents to the
picture without a stop.
"""

from .decoder import BandedDecoder
from .memory import Mode
from .structure import supports
from .tiny import TinyDecoder
from .tiny import supports as supports_tiny

__all__ = ["BandedDecoder", "Mode", "TinyDecoder", "supports", "supports_tiny"]
