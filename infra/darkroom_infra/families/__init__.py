"""The registry of families: to add one, write its module and name it here."""

from collections.abc import Mapping

from .base import (
    RGB,
    Decoded,
    Family,
    LatentsError,
    Normalization,
    VaeFacts,
    choose_normalization,
    plan,
)
from .cogvideox import COGVIDEOX
from .flux import FLUX
from .flux2 import FLUX2
from .hunyuan_video import HUNYUAN_VIDEO
from .ltx_video import LTX_VIDEO
from .mochi import MOCHI
from .pixels import PICTURE_NAME, planes_shape, to_planes
from .qwen_image import QWEN_IMAGE
from .sana import SANA
from .sd import SD
from .sd3 import SD3
from .wan import WAN

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        *(SD, SD3, FLUX, FLUX2, QWEN_IMAGE, SANA),
        *(HUNYUAN_VIDEO, WAN, LTX_VIDEO, COGVIDEOX, MOCHI),
    )
}

__all__ = [
    "FAMILIES",
    "PICTURE_NAME",
    "RGB",
    "Decoded",
    "Family",
    "LatentsError",
    "Normalization",
    "VaeFacts",
    "choose_normalization",
    "plan",
    "planes_shape",
    "to_planes",
]
