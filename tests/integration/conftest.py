"""What tests of the records and the ledger stand on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from darkroom_infra.ledger import Ledger
from darkroom_infra.records import RecordsClient
from tests.conftest import Deployment, Servers


@pytest.fixture
def deployment(servers: Servers, tmp_path: Path) -> Iterator[Deployment]:
    """An installation without processes, with a bucket and an epoch."""
    with servers.deploy(tmp_path) as deployment:
        deployment.ledger().store.ensure_bucket()
        deployment.records().begin_epoch("test")
        yield deployment


@pytest.fixture
def records(deployment: Deployment) -> RecordsClient:
    """Its records."""
    return deployment.records()


@pytest.fixture
def ledger(deployment: Deployment) -> Ledger:
    """Its ledger."""
    return deployment.ledger()
