"""Once more: a new job on the latents of an earlier one, with other options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from starlette.concurrency import run_in_threadpool

from darkroom_infra.ledger import latents_key
from darkroom_infra.records import JOB_EVENTS, JobSpec, Rendering
from darkroom_infra.store import StoredObject
from darkroom_wire.jobs import JobOptions, Status, Task
from darkroom_wire.problems import FieldError
from darkroom_wire.tensors import TensorInfo

from . import intake, reading
from .errors import GoneError, InvalidRequestError
from .intake import LATENTS_NAME, Submission
from .services import Services, intake_rules

_SCALING: Final = frozenset({"scaling", "scaling_factor", "shift_factor"})
_VIDEO_ONLY: Final = frozenset({"fps", "num_frames"})
_CALLBACK: Final = frozenset({"callback_url", "callback_events"})


async def find(services: Services, owner: str, job_id: str) -> JobSpec:
    """Find the job on whose latents another is to be made.

    Raises:
        NotFoundError: there is none, or it is another's.
        GoneError: its latents are no longer stored.
    """
    record = await reading.read(services, owner, job_id)
    if record.state.status is Status.EXPIRED:
        raise _gone(job_id)
    return record.spec


def inherit(services: Services, spec: JobSpec, given: Mapping[str, Any]) -> JobOptions:
    """Take over the options of an earlier job that are not given anew, as far as they have a sense.

    Raises:
        InvalidRequestError: the task is another one, or the VAE is unknown.
    """
    task = given.get("task", spec.options.task)
    if task is not spec.options.task:
        raise InvalidRequestError.of(
            FieldError(field="task", message=f"the job is to {spec.options.task}, not to {task}")
        )
    vae = intake.find_vae(services.catalog, given.get("vae", spec.options.vae))
    old = spec.options.model_dump(exclude_none=True)
    if given.keys() & _SCALING:
        old = _without(old, _SCALING)
    if vae.layout.fps is None:
        old = _without(old, _VIDEO_ONLY)
    if task is Task.DECODE and old.get("format") not in vae.layout.formats:
        old = _without(old, frozenset({"format"}))
    if spec.batch_id is not None:
        old = _of_one_job(old)
    return JobOptions.model_validate({**old, **given})


async def prepare(services: Services, spec: JobSpec, options: JobOptions) -> Submission:
    """Check the options against the stored latents, as if these had just come.

    Raises:
        InvalidRequestError: they do not fit.
        TooLargeError: more pixels than a job may have.
        GoneError: the latents are no longer stored.
    """
    vae = intake.find_vae(services.catalog, options.vae)
    rules = await intake_rules(services, vae)
    chosen = intake.check_options(options, vae)
    latents = spec.latents
    if options.task is Task.ENCODE:
        intake.check_pixels(latents, rules)
    else:
        intake.check_latents(TensorInfo(LATENTS_NAME, latents.dtype, latents.shape), options, rules)
    try:
        body = await run_in_threadpool(_body, services, spec)
    except FileNotFoundError:
        raise _gone(spec.id) from None
    return Submission(options, chosen, Rendering.DECODED, latents, body, spec.content)


def _body(services: Services, spec: JobSpec) -> bytes | StoredObject:
    """Look at the object to be copied; of a batch's file, read the job's part."""
    ledger = services.ledger
    return (
        ledger.store.look(latents_key(spec.id)) if spec.batch_id is None else ledger.latents(spec)
    )


def _gone(job_id: str) -> GoneError:
    return GoneError(f"the latents of job {job_id} are no longer stored")


def _of_one_job(options: dict[str, Any]) -> dict[str, Any]:
    """Take over of a batch's callback what concerns its single jobs."""
    asked = options.get("callback_events", "").split(",")
    events = [event for event in asked if event in JOB_EVENTS]
    options = _without(options, _CALLBACK) if not events else options
    return options | ({"callback_events": ",".join(events)} if events else {})


def _without(options: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}
