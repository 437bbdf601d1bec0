"""The registry of families: to add one, write its module and name it here."""

from collections.abc import Mapping

from .base import Decoded, Factors, Family, LatentsError, VaeFacts, config_factors
from .flux import FLUX
from .sd import SD

FAMILIES: Mapping[str, Family] = {family.name: family for family in (SD, FLUX)}

__all__ = [
    "FAMILIES",
    "Decoded",
    "Factors",
    "Family",
    "LatentsError",
    "VaeFacts",
    "config_factors",
]
