"""Where the faults happen: a store for all of them, and an installation that most of them share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Servers
from tests.faults.site import Lab, Site, Store


@pytest.fixture(scope="session")
def lab(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The store of the whole test run, and a folder for logs."""
    keys = servers.stack.credentials
    store = Store(servers.stack.s3_url, keys.access_key_id, keys.secret_access_key)
    return Lab(store, tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="package")
def site(lab: Lab) -> Iterator[Site]:
    """An API and two workers; each test leaves them running, and at rest."""
    with lab.site() as site:
        yield site
