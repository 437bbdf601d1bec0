"""From a catalogue entry to a VAE on a device. Only safetensors weights are loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import nn

from darkroom_infra.catalog import VaeEntry
from darkroom_infra.families import VaeFacts

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
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
    """A VAE on a device, ready to decode."""

    entry: VaeEntry
    module: nn.Module
    config: Mapping[str, Any]
    facts: VaeFacts
    dtype: str
    device: torch.device

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
        facts = entry.layout.facts(files.config)
        name = _choose_dtype(entry, files, dtype)
        module = _from_pretrained(files, DTYPES[name])
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise VaeLoadError(f"VAE {entry.name}: {files.folder}: {error}") from error
    module.to(device).eval().requires_grad_(requires_grad=False)
    return LoadedVae(entry, module, files.config, facts, name, device)


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
    """Choose as the pipelines do: a VAE that overflows in float16 says so by `force_upcast`."""
    name = setting
    if setting == "auto":
        name = entry.dtype or _stored_dtype(files.weights[0])
    if name == "float16" and files.config.get("force_upcast"):
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
        files.folder, torch_dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    # diffusers only warns about these, and decodes with random values in their place.
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(fault):
            some = ", ".join(map(str, list(report[fault])[:3]))
            raise ValueError(f"the weights do not fit config.json: {fault}: {some}, …")
    if not isinstance(module, nn.Module):
        raise TypeError(f"{class_name} is no module")
    return module
