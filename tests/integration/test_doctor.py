"""What `darkroom doctor` says of a real Redis that forgets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from darkroom_infra.doctor import Level, check_redis
from darkroom_infra.records import RecordsClient
from darkroom_infra.settings import Settings
from tests.faults.servers import Valkey


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A Valkey of its own, set up as it should be, with an epoch."""
    valkey = Valkey(tmp_path / "valkey")
    valkey.start()
    records = RecordsClient(valkey.url)
    records.begin_epoch("test")
    records.close()
    yield valkey
    valkey.close()


def test_a_redis_that_keeps_everything(valkey: Valkey) -> None:
    """Nothing is to be done about one that keeps what it is told."""
    (finding,) = check_redis(Settings(redis_url=valkey.url))
    assert finding.level is Level.FINE
    assert not finding.remedy


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("maxmemory-policy", "allkeys-lru", "set maxmemory-policy noeviction"),
        ("appendonly", "no", "set appendonly yes"),
    ],
)
def test_a_redis_that_forgets(valkey: Valkey, setting: str, value: str, remedy: str) -> None:
    """One that drops records, or has no log on disk, is named with what to do about it."""
    valkey.client.config_set(setting, value)
    version, finding = check_redis(Settings(redis_url=valkey.url))
    assert version.level is Level.FINE
    assert (finding.level, finding.remedy) == (Level.WARNING, remedy)
