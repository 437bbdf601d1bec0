"""`/v1/vaes`: the catalogue."""

from __future__ import annotations

from fastapi import APIRouter

from darkroom_api.auth import Owner
from darkroom_api.errors import NotFoundError
from darkroom_api.services import ServicesDependency
from darkroom_infra.catalog import UnknownVaeError, VaeEntry
from darkroom_infra.records import transitions
from darkroom_infra.records.transitions import Presence
from darkroom_wire.jobs import VaeInfo, VaeList

router = APIRouter(prefix="/v1/vaes", tags=["vaes"])


@router.get("")
async def list_vaes(owner: Owner, services: ServicesDependency) -> VaeList:  # noqa: ARG001
    """List the VAEs that jobs can name."""
    presence = await services.records.run(transitions.loaded())
    return VaeList(results=[_describe(vae, presence) for vae in services.catalog.values()])


@router.get("/{name}")
async def read_vae(name: str, owner: Owner, services: ServicesDependency) -> VaeInfo:  # noqa: ARG001
    """Describe one VAE, with its configuration and statistics as far as they are known."""
    try:
        vae = services.catalog[name]
    except UnknownVaeError:
        raise NotFoundError(f"there is no VAE {name[:60]!r}") from None
    described = _describe(vae, await services.records.run(transitions.loaded()))
    details = await services.records.run(transitions.details(name))
    return described.model_copy(
        update={
            "config": details.config if details else vae.config,
            "buffers": details.buffers if details else None,
        }
    )


def _describe(vae: VaeEntry, presence: Presence) -> VaeInfo:
    facts = vae.facts or presence.facts.get(vae.name)
    return VaeInfo(
        name=vae.name,
        family=vae.family,
        source=vae.source,
        subfolder=vae.subfolder,
        revision=vae.revision,
        dtype=vae.dtype,
        latent_channels=facts.latent_channels if facts else None,
        spatial_factor=facts.spatial_factor if facts else None,
        temporal_factor=facts.temporal_factor if facts else None,
        packed=vae.layout.packed,
        formats=vae.layout.formats,
        loaded=vae.name in presence.loaded,
    )
