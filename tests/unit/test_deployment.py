"""The compose file and the images fit the program that they run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from darkroom_infra.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "infra" / "docker").glob("*.Dockerfile"))
KNOWN = {PREFIX + name.upper() for name in Settings.model_fields}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services of the compose file, with anchors and merges resolved."""
    document = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text())
    return dict(document["services"])


@pytest.mark.parametrize("name", ["docker-compose.yml", ".env.example"])
def test_only_known_settings_are_named(name: str) -> None:
    """A setting that the program would refuse at start is not in the deployment files."""
    named = set(re.findall(rf"{PREFIX}[A-Z0-9_]+", (ROOT / name).read_text()))
    assert named
    assert named <= KNOWN


def test_every_service_restarts_and_is_watched(services: dict[str, Any]) -> None:
    """What dies is started again, and what hangs is seen."""
    assert {"valkey", "seaweedfs", "api", "worker", "worker-gpu"} == set(services)
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["stop_grace_period"] == "20s", name


def test_images_are_pinned(services: dict[str, Any]) -> None:
    """The same files give the same versions: no image floats."""
    images = [service["image"] for service in services.values()]
    images += [
        image
        for path in DOCKERFILES
        for image in re.findall(r"^FROM (\S+)", path.read_text(), re.MULTILINE)
    ]
    assert all(re.fullmatch(r"[\w/.-]+:\d+\.\d+[\w.-]*", image) for image in images), images


def test_only_the_gpu_worker_asks_for_a_gpu(services: dict[str, Any]) -> None:
    """Without the profile nothing needs a GPU."""
    assert [name for name, service in services.items() if "deploy" in service] == ["worker-gpu"]
    assert services["worker-gpu"]["profiles"] == ["gpu"]


def test_nothing_runs_as_root() -> None:
    """Both images end as an ordinary user."""
    assert len(DOCKERFILES) == 2
    for path in DOCKERFILES:
        users = re.findall(r"^USER (\S+)", path.read_text(), re.MULTILINE)
        assert users == ["10001:10001"], path.name


def test_no_secret_is_committed() -> None:
    """The example leaves every key empty."""
    example = (ROOT / ".env.example").read_text()
    for name in ("API_KEYS", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"):
        assert re.search(rf"^{PREFIX}{name}=$", example, re.MULTILINE), name
