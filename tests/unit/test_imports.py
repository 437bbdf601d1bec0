"""Light parts stay light."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "PIL", "av")


@pytest.mark.parametrize(
    "module",
    [
        "darkroom",
        "darkroom.cli",
        "darkroom_wire.jobs",
        "darkroom_infra.commands",
        "darkroom_infra.keeper",
        "darkroom_api.app",
        "darkroom_api.commands",
        "darkroom_worker.commands",
    ],
)
def test_importing_loads_no_torch(module: str) -> None:
    """The API, the client and the command line start without torch and what comes with it."""
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_catalogue_and_families_load_no_torch() -> None:
    """Checking latents needs no torch: the families compute with what they are given."""
    code = (
        "import sys; from darkroom_infra.catalog import Catalog; Catalog.load(); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
