"""The loaded VAEs: loaded on first use, the least recently used leaves when memory is short."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import psutil
import torch

from darkroom_infra.catalog import VaeEntry
from darkroom_infra.telemetry import get_logger

from .loading import LoadedVae, VaeFiles

HEADROOM = 1.5
"""How much more memory than the weights take must be free, so that decoding has room too."""

_log = get_logger("worker.cache")


class VaeCache:
    """Loads VAEs and keeps them. For one thread at a time; only `held` is for any."""

    def __init__(
        self,
        locate: Callable[[VaeEntry], VaeFiles],
        load: Callable[[VaeEntry, VaeFiles], LoadedVae],
        available: Callable[[], int],
    ) -> None:
        self._locate = locate
        self._load = load
        self._available = available
        self._vaes: OrderedDict[str, LoadedVae] = OrderedDict()

    def get(self, entry: VaeEntry) -> LoadedVae:
        """Return a VAE, loading it if need be.

        Raises:
            VaeLoadError: it cannot be loaded.
        """
        if entry.name not in self._vaes:
            files = self._locate(entry)
            while self._vaes and self._available() < HEADROOM * files.nbytes:
                self._evict(next(iter(self._vaes)))
            self._vaes[entry.name] = self._load(entry, files)
            _log.info("vae.loaded", vae=entry.name, bytes=files.nbytes)
        self._vaes.move_to_end(entry.name)
        return self._vaes[entry.name]

    def available(self) -> int:
        """Count the bytes that are free on the device."""
        return self._available()

    def keep_only(self, name: str) -> bool:
        """Make room by dropping all VAEs but one; False if there was nothing to drop."""
        others = [other for other in self._vaes if other != name]
        for other in others:
            self._evict(other)
        return bool(others)

    def held(self) -> Mapping[str, LoadedVae]:
        """Copy what is loaded now."""
        return dict(self._vaes)

    def _evict(self, name: str) -> None:
        del self._vaes[name]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _log.info("vae.evicted", vae=name)


def total_memory(device: torch.device) -> int:
    """Count the bytes that a device has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    total: int = psutil.virtual_memory().total
    return total


def free_memory(device: torch.device) -> int:
    """Count the bytes that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available: int = psutil.virtual_memory().available
    return available
