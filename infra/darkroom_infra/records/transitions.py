"""Every step of a job's life, as a call of one Lua script.

A function here says which script is run with which arguments and how its answer is read; it
touches nothing. `RecordsClient` and `AsyncRecordsClient` carry calls out. The life itself:

    queued -> running(nonce, lease) -> committing -> succeeded | failed | canceled -> expired
    running -> queued, when the lease ends or the attempt hands the job back
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Generic, TypeVar

from darkroom_infra.families import VaeFacts
from darkroom_infra.queue import Doorbell
from darkroom_wire.jobs import Priority

from .model import JobRecord, JobSpec, Manifest, State, to_milliseconds

T = TypeVar("T")
Argument = str | int | float

RING_AFTER = timedelta(seconds=5)
"""How long a queued job waits in silence before its doorbell is rung again."""

IDEMPOTENCY_KEPT = timedelta(hours=24)
RECORD_KEPT = timedelta(days=7)
"""How long the record of an expired or deleted job is kept."""

LIST_LOOKED_AT = 1000


@dataclass(frozen=True)
class Call(Generic[T]):
    """One run of a script: its name, its arguments, and how to read the answer."""

    script: str
    arguments: tuple[Argument, ...]
    read: Callable[[Any], T]


class Admission(StrEnum):
    """What the records say to a submission."""

    ADMITTED = "admitted"
    KNOWN = "known"
    MISMATCH = "mismatch"
    FULL = "full"
    RECOVERING = "recovering"


class Requeue(StrEnum):
    """What became of a job whose lease may have ended."""

    QUEUED = "queued"
    ALIVE = "alive"
    EXHAUSTED = "exhausted"


@dataclass(frozen=True)
class Claim:
    """An attempt's hold on a job. `waited_ms` is the time between submission and claim."""

    spec: JobSpec
    nonce: str
    attempts: int
    waited_ms: float


@dataclass(frozen=True)
class Due:
    """A job on which something is to be done."""

    id: str
    rank: int
    state: State
    settled: bool
    candidate: Manifest | None


@dataclass(frozen=True)
class Presence:
    """The VAEs that living workers hold, and the facts of every VAE that was ever loaded."""

    loaded: frozenset[str]
    facts: Mapping[str, VaeFacts]


@dataclass(frozen=True)
class Statistics:
    """What waits and who works."""

    depth: Mapping[Priority, int]
    backlog: Mapping[str, int]
    running: int
    workers: int
    finished_last_minute: int
    oldest_ms: int | None


def admit(
    owner: str, idempotency: str, fingerprint: str, new_id: str, limit: int
) -> Call[tuple[Admission, str]]:
    """Ask whether a submission may go on, and under which id."""
    return Call(
        "admit",
        (owner, idempotency, fingerprint, new_id, limit, _ms(IDEMPOTENCY_KEPT)),
        lambda answer: (Admission(answer[0]), answer[1]),
    )


def accept(spec: JobSpec, *, rebuilding: bool = False) -> Call[str]:
    """Put a new job on record and ring for it: `accepted`, `known` or `recovering`."""
    rank = spec.options.priority.rank
    return Call(
        "accept",
        (
            spec.id,
            spec.model_dump_json(exclude_defaults=True),
            spec.owner,
            spec.options.vae,
            rank,
            to_milliseconds(spec.created_at),
            *_bell(spec.id, rank),
            int(rebuilding),
        ),
        str,
    )


def claim(job_id: str, nonce: str, lease: timedelta) -> Call[Claim | None]:
    """Take a queued job; None if it is not to be had."""

    def read(answer: Any) -> Claim | None:
        if not answer:
            return None
        spec, attempts, waited = answer
        return Claim(JobSpec.model_validate_json(spec), nonce, attempts, waited)

    return Call("claim", (job_id, nonce, _ms(lease)), read)


def extend(job_id: str, nonce: str, lease: timedelta, progress: float) -> Call[bool]:
    """Renew a lease; False if the attempt has lost the job."""
    return Call("extend", (job_id, nonce, _ms(lease), round(progress, 3)), bool)


def begin_commit(nonce: str, lease: timedelta, candidate: Manifest) -> Call[bool]:
    """Announce a result that is stored; False if the attempt has lost the job."""
    arguments = (candidate.job_id, nonce, _ms(lease), candidate.model_dump_json())
    return Call("begin_commit", arguments, bool)


def finish(manifest: Manifest) -> Call[str]:
    """Follow the manifest in the ledger: `finished`, `known` or `unknown`."""
    arguments = (
        manifest.job_id,
        manifest.model_dump_json(),
        manifest.status.value,
        to_milliseconds(manifest.finished_at),
        to_milliseconds(manifest.expires_at),
    )
    return Call("finish", arguments, str)


def requeue(job_id: str, rank: int, max_attempts: int) -> Call[Requeue]:
    """Take a job away from an attempt whose lease has ended."""
    return Call("requeue", (job_id, max_attempts, *_bell(job_id, rank)), Requeue)


def release(claimed: Claim) -> Call[bool]:
    """Hand a job back without counting the attempt."""
    spec = claimed.spec
    bell = _bell(spec.id, spec.options.priority.rank)
    return Call("release", (spec.id, claimed.nonce, *bell), bool)


def ring(job_id: str, rank: int) -> Call[bool]:
    """Ring again for a queued job that nobody took."""
    return Call("ring", (job_id, *_bell(job_id, rank)), bool)


def retire(job_id: str, state: State) -> Call[str]:
    """Show a finished job's results no more: `retired`, `known`, `unfinished` or `unknown`."""
    return Call("retire", (job_id, state.value), str)


def settle(job_id: str) -> Call[bool]:
    """Note that a retired job's objects are gone."""
    return Call("settle", (job_id, _ms(RECORD_KEPT)), bool)


def forget(job_id: str) -> Call[bool]:
    """Remove a settled job's record."""
    return Call("forget", (job_id,), bool)


def read(job_id: str) -> Call[JobRecord | None]:
    """Read one record."""
    return Call("read", (job_id,), _record)


def list_jobs(
    owner: str, states: Sequence[State], cursor: str | None, length: int
) -> Call[tuple[list[JobRecord], str | None]]:
    """Read a page of an owner's records, newest first, and the next page's cursor."""

    def parse(answer: Any) -> tuple[list[JobRecord], str | None]:
        following, page = answer
        records = (_record(fields) for _, fields in page)
        return [record for record in records if record], following or None

    arguments = (owner, ",".join(states), cursor or "", length, LIST_LOOKED_AT)
    return Call("list", arguments, parse)


def due(index: str, limit: int = 100) -> Call[list[Due]]:
    """Read the jobs whose time has come in `rings`, `running`, `committing` or `endings`."""

    def parse(answer: Any) -> list[Due]:
        return [
            Due(
                id=job_id,
                rank=int(rank),
                state=State(state),
                settled=bool(settled),
                candidate=Manifest.model_validate_json(candidate) if candidate else None,
            )
            for job_id, rank, state, settled, candidate in answer
            if state
        ]

    return Call("due", (index, limit), parse)


def presence(worker: str, lease: timedelta, vaes: Mapping[str, VaeFacts]) -> Call[bool]:
    """Say that a worker lives, and which VAEs it holds."""
    held = json.dumps({name: asdict(facts) for name, facts in vaes.items()})
    return Call("presence", (worker, _ms(lease), held), bool)


def loaded() -> Call[Presence]:
    """Read what the living workers hold."""

    def parse(answer: Any) -> Presence:
        held, facts = answer
        return Presence(
            frozenset(name for vaes in held for name in json.loads(vaes)),
            {name: VaeFacts(**json.loads(value)) for name, value in _pairs(facts).items()},
        )

    return Call("loaded", (), parse)


def statistics() -> Call[Statistics]:
    """Read what waits and who works."""

    def parse(answer: Any) -> Statistics:
        depths, backlog, running, workers, finished, oldest = answer
        depth = dict(zip(Priority, depths, strict=True))
        return Statistics(
            depth=depth,
            backlog={vae: int(count) for vae, count in _pairs(backlog).items()},
            running=running,
            workers=workers,
            finished_last_minute=finished,
            oldest_ms=oldest if any(depths) else None,
        )

    return Call("statistics", (len(Priority),), parse)


def _ms(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1000)


def _bell(job_id: str, rank: int) -> tuple[str, str, int]:
    """Give the three arguments with which a script rings: queue, message, ring after."""
    doorbell = Doorbell.for_job(job_id, rank)
    return doorbell.queue_key, doorbell.message, _ms(RING_AFTER)


def _record(fields: Sequence[Any]) -> JobRecord | None:
    return JobRecord.parse(_pairs(fields)) if fields else None


def _pairs(flat: Sequence[Any] | Mapping[str, str]) -> Mapping[str, str]:
    """Read a hash as RESP2 gives it, flat, or as RESP3 gives it, as a mapping."""
    if isinstance(flat, Mapping):
        return flat
    return dict(zip(flat[::2], flat[1::2], strict=True))
