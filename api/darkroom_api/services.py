"""What the routes work with, wired once for each process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from darkroom_infra.catalog import Catalog
from darkroom_infra.ledger import Ledger
from darkroom_infra.records import AsyncRecordsClient
from darkroom_infra.settings import Settings

from .waiting import Waiters


@dataclass(frozen=True)
class Services:
    """The parts behind the routes. `warnings` say what cannot be promised."""

    settings: Settings
    catalog: Catalog
    records: AsyncRecordsClient
    ledger: Ledger
    waiters: Waiters
    warnings: list[str]


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDependency = Annotated[Services, Depends(_services)]
