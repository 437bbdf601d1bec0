"""From a catalogue entry to a VAE on a device. Only safetensors weights are loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import nn

from darkroom_infra.catalog import VaeEntry
from darkroom_infra.families import Normalization, VaeFacts
from darkroom_infra.records.transitions import VaeDetails

from .banded import BandedDecoder, TinyDecoder, supports, supports_tiny
from .footprint import WholeDecode
from .streamed import ExactDecoder, stream

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
STATISTICS = ("latents_mean", "latents_std", "bn.running_mean", "bn.running_var")
"""Buffers that LTX-Video's and FLUX.2's pipelines read: their latents are normalized by them."""

WEIGHTS = re.compile(r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors")
"""The files that `from_pretrained` reads without a variant: one, or numbered shards."""

_DOWNLOADS = (
    "config.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model-*-of-*.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
)
_STORED_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class DeviceError(Exception):
    """A device that is not there. The text says what to set."""


class VaeLoadError(Exception):
    """A VAE that cannot be loaded. The text says where it was looked for and what is wrong."""


@dataclass(frozen=True)
class LoadedVae:
    """A VAE on a device, ready to decode; `exact` where that also goes piece by piece, exactly."""

    entry: VaeEntry
    module: nn.Module
    config: Mapping[str, Any]
    facts: VaeFacts
    normalization: Normalization
    dtype: str
    device: torch.device
    exact: ExactDecoder[Any] | None = None

    @cached_property
    def details(self) -> VaeDetails:
        """What pipelines ask of a VAE although another machine decodes."""
        return VaeDetails(self.config, read_buffers(self.module))

    @cached_property
    def has_frames(self) -> bool:
        """Whether it convolves frames, too. Such VAEs keep some in attributes while they decode."""
        return any(isinstance(layer, nn.Conv3d) for layer in self.module.modules())

    @cached_property
    def whole(self) -> WholeDecode:
        """Predicts the memory of a decode in one piece."""
        return WholeDecode(
            self.module, lambda grid: self.entry.layout.decode_arguments(grid, self.config)
        )

    @property
    def provenance(self) -> dict[str, Any]:
        """What made the picture, for the job's document."""
        return {
            "vae": self.entry.name,
            "source": self.entry.source,
            "subfolder": self.entry.subfolder,
            "revision": self.entry.revision,
            "class": type(self.module).__name__,
            "dtype": self.dtype,
            "device": str(self.device),
        }


@dataclass(frozen=True)
class VaeFiles:
    """A VAE on disk: its folder and configuration, and the size of its weights in bytes."""

    folder: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]

    @property
    def nbytes(self) -> int:
        """The size of the weights."""
        return sum(path.stat().st_size for path in self.weights)


def locate(entry: VaeEntry) -> VaeFiles:
    """Find a VAE's files, fetching them from the hub where the entry names a repository.

    Raises:
        VaeLoadError: no such folder or repository, no configuration, no safetensors weights.
    """
    folder = entry.folder or _download(entry)
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        reason = "has no config.json" if folder.is_dir() else "does not exist"
        raise VaeLoadError(f"VAE {entry.name}: the folder {folder} {reason}") from error
    except (OSError, ValueError) as error:
        raise VaeLoadError(f"VAE {entry.name}: {folder / 'config.json'}: {error}") from error
    if not isinstance(config, dict):
        raise VaeLoadError(f"VAE {entry.name}: {folder / 'config.json'} holds no object")
    weights = tuple(sorted(path for path in folder.iterdir() if WEIGHTS.fullmatch(path.name)))
    if not weights:
        raise VaeLoadError(
            f"VAE {entry.name}: {folder} holds no diffusion_pytorch_model.safetensors, and only "
            "safetensors weights are loaded"
        )
    return VaeFiles(folder, config, weights)


def load(entry: VaeEntry, files: VaeFiles, *, device: torch.device, dtype: str) -> LoadedVae:
    """Load a VAE onto a device. `dtype` is a name, or `auto` for the VAE's own.

    Raises:
        VaeLoadError: an unknown class, or weights that do not fit the configuration.
    """
    try:
        name = _choose_dtype(entry, files, dtype)
        module = _from_pretrained(files, DTYPES[name])
        config = _complete(files.config, module)
        facts = entry.layout.facts(config)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise VaeLoadError(f"VAE {entry.name}: {files.folder}: {error}") from error
    module.to(device).eval().requires_grad_(requires_grad=False)
    if not entry.temporal_tiles:
        module.use_framewise_decoding = module.use_framewise_encoding = False  # type: ignore[assignment]
    normalization = entry.layout.normalization(config, *read_statistics(module))
    exact = _exact_decoder(module)
    return LoadedVae(entry, module, config, facts, normalization, name, device, exact)


def _exact_decoder(module: nn.Module) -> ExactDecoder[Any] | None:
    """Make what decodes a VAE piece by piece, where there is such a thing."""
    if supports(module):
        return BandedDecoder(module)
    return TinyDecoder(module) if supports_tiny(module) else stream(module)


def _complete(config: Mapping[str, Any], module: nn.Module) -> Mapping[str, Any]:
    """Add to a `config.json` what it leaves out, as older ones do: the defaults of the class."""
    own: Mapping[str, Any] = module.config  # type: ignore[assignment]
    return {**config, **{key: value for key, value in own.items() if not key.startswith("_")}}


def read_statistics(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | tuple[()]:
    """Read the mean and the standard deviation of a VAE's latents, [C] each, where it has them.

    Most have them in the configuration, LTX-Video's in buffers; FLUX.2's are those of a batch-norm
    layer.
    """
    config: Mapping[str, Any] = module.config  # type: ignore[assignment]
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        return torch.tensor(mean), torch.tensor(std)
    buffers = dict(module.named_buffers(recurse=False))
    if {"latents_mean", "latents_std"} <= set(buffers):
        return buffers["latents_mean"], buffers["latents_std"]
    norm = getattr(module, "bn", None)
    if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
        variance: torch.Tensor = norm.running_var  # type: ignore[assignment]
        return norm.running_mean, torch.sqrt(variance + config["batch_norm_eps"])
    return ()


def read_buffers(module: nn.Module) -> Mapping[str, list[float]]:
    """Read the statistics of the latents that lie in a VAE's weights, as they lie there."""
    buffers = dict(module.named_buffers())
    return {name: buffers[name].tolist() for name in STATISTICS if name in buffers}


def choose_device(name: str) -> torch.device:
    """Turn the setting into a device: `auto` is CUDA where there is one.

    Raises:
        DeviceError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise DeviceError(
            f"DARKROOM_DEVICE={name} cannot be used: {error}; set it to auto, cpu or cuda:N"
        ) from error
    return device


def _download(entry: VaeEntry) -> Path:
    inside = f"{entry.subfolder}/" if entry.subfolder else ""
    try:
        root = snapshot_download(
            entry.source,
            revision=entry.revision,
            allow_patterns=[inside + name for name in _DOWNLOADS],
        )
    except (OSError, ValueError) as error:
        raise VaeLoadError(f"VAE {entry.name}: hub repository {entry.source}: {error}") from error
    return Path(root) / inside


def _choose_dtype(entry: VaeEntry, files: VaeFiles, setting: str) -> str:
    """Choose as the pipelines do: a VAE that overflows in float16 may say so by `force_upcast`."""
    name = setting
    if setting == "auto":
        name = entry.dtype or _stored_dtype(files.weights[0])
    if name == "float16" and entry.layout.upcasts and files.config.get("force_upcast"):
        return "float32"
    return name


def _stored_dtype(weights: Path) -> str:
    with safe_open(weights, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a mapping
            return _STORED_DTYPES.get(file.get_slice(key).get_dtype(), "float32")
    raise ValueError(f"{weights.name} is empty")


def _from_pretrained(files: VaeFiles, dtype: torch.dtype) -> nn.Module:
    class_name = str(files.config.get("_class_name", ""))
    vae_class = getattr(diffusers, class_name, None) if class_name.startswith("Auto") else None
    if vae_class is None:
        raise ValueError(f"config.json names the class {class_name!r}, which is no VAE")
    module, report = vae_class.from_pretrained(
        files.folder,
        torch_dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        low_cpu_mem_usage=False,  # the default wants a library that nothing else needs
    )
    # diffusers only warns about these, and decodes with random values in their place.
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(fault):
            some = ", ".join(map(str, list(report[fault])[:3]))
            raise ValueError(f"the weights do not fit config.json: {fault}: {some}, …")
    if not isinstance(module, nn.Module):
        raise TypeError(f"{class_name} is no module")
    return module
