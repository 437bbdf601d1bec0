"""What `darkroom doctor` asks the worker's side: the device, and whether each VAE is at hand."""

from __future__ import annotations

from darkroom_infra.doctor import Finding, Level
from darkroom_infra.settings import Settings


def check_device(settings: Settings) -> list[Finding]:
    """Tell which device decodes."""
    import torch

    from .loading import DeviceError, choose_device

    try:
        device = choose_device(settings.device)
    except DeviceError as error:
        return [Finding("device", Level.FAULT, str(error), "correct DARKROOM_DEVICE")]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return [Finding("device", Level.FINE, f"{device} ({name}), torch {torch.__version__}")]


def check_catalog(settings: Settings) -> list[Finding]:
    """Look for the folder of each VAE that has one."""
    from darkroom_infra.catalog import Catalog, CatalogError

    from .loading import VaeLoadError, locate

    try:
        catalog = Catalog.load(settings.catalog)
    except CatalogError as error:
        return [Finding("catalog", Level.FAULT, str(error), "correct DARKROOM_CATALOG")]
    findings = []
    for vae in catalog.values():
        if vae.folder is None:
            continue
        try:
            locate(vae)
        except VaeLoadError as error:
            findings.append(
                Finding("catalog", Level.FAULT, str(error), f"correct vaes.{vae.name}.source")
            )
    return findings or [Finding("catalog", Level.FINE, f"{len(catalog)} VAEs")]
