"""HTTP clients on the shared installations."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.conftest import Deployment

SAFETENSORS = {"Content-Type": "application/x-safetensors"}
RAW = {"Content-Type": "tensor/binary"}


@pytest.fixture
def working(installation: Deployment) -> Iterator[httpx.Client]:
    """A client of a service with a worker."""
    with installation.client() as client:
        yield client


@pytest.fixture
def accepting(intake: Deployment) -> Iterator[httpx.Client]:
    """A client of a service without a worker: what it accepts stays queued."""
    with intake.client() as client:
        yield client
