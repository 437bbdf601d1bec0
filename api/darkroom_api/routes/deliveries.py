"""`/v1/jobs/ID/deliveries`: the attempts at sending a job's webhooks, and sending again."""

from __future__ import annotations

from fastapi import APIRouter

from darkroom_api import reading
from darkroom_api.auth import Owner
from darkroom_api.errors import ConflictError
from darkroom_api.services import Services, ServicesDependency
from darkroom_infra.records import transitions
from darkroom_wire.jobs import Deliveries, Delivery, EventState

router = APIRouter(prefix="/v1/jobs", tags=["webhooks"])


@router.get("/{job_id}/deliveries", response_model=Deliveries)
async def list_deliveries(job_id: str, owner: Owner, services: ServicesDependency) -> Deliveries:
    """List the attempts at sending a job's events, oldest first, and what became of each event."""
    await reading.read(services, owner, job_id)
    return await _deliveries(services, job_id)


@router.post("/{job_id}/deliveries", status_code=202, response_model=Deliveries)
async def send_again(job_id: str, owner: Owner, services: ServicesDependency) -> Deliveries:
    """Send the events of a job that have happened once more, whatever became of them."""
    await reading.read(services, owner, job_id)
    if not await services.records.run(transitions.send_again(job_id)):
        raise ConflictError(f"job {job_id} has no events to send: no callback, or not ended yet")
    return await _deliveries(services, job_id)


async def _deliveries(services: Services, about: str) -> Deliveries:
    found = await services.records.run(transitions.deliveries(about))
    return Deliveries(
        results=[Delivery.model_validate(attempt) for attempt in found.attempts],
        events=[
            EventState(
                event=event.event, state=event.state.value, next_attempt_at=event.next_attempt_at
            )
            for event in found.events
        ],
    )
