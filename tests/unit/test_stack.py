"""The embedded stack's choice of servers and ports."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from darkroom_infra.embedded.binaries import MissingBinaryError
from darkroom_infra.embedded.ports import free_ports, is_free
from darkroom_infra.embedded.stack import prepare
from darkroom_infra.settings import Settings

REDIS = {"redis_url": "redis://elsewhere:6379/0"}
S3 = {"s3_endpoint_url": "http://elsewhere:9000"}


@pytest.mark.parametrize(
    ("given", "run"),
    [
        ({}, ["valkey", "seaweedfs"]),
        (REDIS, ["seaweedfs"]),
        (S3, ["valkey"]),
        (REDIS | S3, []),
    ],
    ids=["nothing", "redis", "s3", "both"],
)
def test_configured_servers_are_not_run(
    tmp_path: Path, given: dict[str, str], run: list[str]
) -> None:
    """A server that the settings name is used; only the others are started."""
    stack = prepare(tmp_path, None, 1, Settings(**given))
    assert [program.name for program in stack.servers()] == run
    environment = stack.environment
    assert ("elsewhere" in environment["DARKROOM_REDIS_URL"]) == ("valkey" not in run)
    assert ("elsewhere" in environment["DARKROOM_S3_ENDPOINT_URL"]) == ("seaweedfs" not in run)
    assert ("DARKROOM_S3_ACCESS_KEY_ID" in environment) == ("seaweedfs" in run)


def test_a_platform_without_programs_is_told_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a wheel has no program for the platform, the message names the settings instead.

    Another platform cannot be had here, so the search for the programs finds nothing.
    """
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda *arguments, **options: None)
    for given, setting in (({}, "DARKROOM_REDIS_URL"), (REDIS, "DARKROOM_S3_ENDPOINT_URL")):
        with pytest.raises(MissingBinaryError, match=setting):
            prepare(tmp_path, None, 1, Settings(**given)).servers()
    assert prepare(tmp_path, None, 1, Settings(**REDIS, **S3)).servers() == []


def test_ports_and_keys_stay(tmp_path: Path) -> None:
    """A stack that is started again has the ports and the key that its links were made with."""
    first, second = (prepare(tmp_path, None, 1, Settings()) for _ in range(2))
    assert first.ports.s3 == second.ports.s3
    assert first.credentials == second.credentials
    assert (tmp_path / "s3-credentials.json").stat().st_mode & 0o077 == 0


def test_free_ports_are_different_and_free() -> None:
    """Ports that are chosen together do not collide."""
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(map(is_free, ports))
