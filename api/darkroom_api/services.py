"""What the routes work with, wired once for each process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from darkroom_infra.batches import Batches
from darkroom_infra.catalog import Catalog, VaeEntry
from darkroom_infra.keeper import Sweeper
from darkroom_infra.ledger import Ledger
from darkroom_infra.records import AsyncRecordsClient
from darkroom_infra.settings import Settings

from .intake import MemoryLimit, Rules
from .metrics import HttpMetrics
from .waiting import Waiters
from .workers import Workers


@dataclass(frozen=True)
class Services:
    """The parts behind the routes. `warnings` say what cannot be promised."""

    settings: Settings
    catalog: Catalog
    records: AsyncRecordsClient
    ledger: Ledger
    batches: Batches
    waiters: Waiters
    workers: Workers
    sweeper: Sweeper
    metrics: HttpMetrics
    warnings: list[str]

    @property
    def in_doubt(self) -> bool:
        """Whether Redis was started again, and nobody has compared it with the ledger since.

        Its append-only file may have been cut off: jobs may be missing, or seem unfinished.
        """
        return self.sweeper.agreed_at < self.waiters.lost_at


async def _services(request: Request) -> Services:
    # A coroutine, although nothing is awaited: FastAPI would send a function to a thread.
    services: Services = request.app.state.services
    return services


async def intake_rules(services: Services, vae: VaeEntry) -> Rules:
    """Gather what a submission for a VAE is checked against.

    What is not known from the catalogue may be known from a worker that has loaded the VAE.
    """
    presence = await services.workers.presence()
    facts = vae.facts or presence.facts.get(vae.name)
    if facts is None:
        presence = await services.workers.presence_now()
        facts = presence.facts.get(vae.name)
    need, memory = presence.needs.get(vae.name), None
    if need is not None and presence.budget is not None:
        memory = MemoryLimit(need, presence.budget)
    return Rules(services.catalog, vae, facts, services.settings.max_pixels, memory)


ServicesDependency = Annotated[Services, Depends(_services)]
