"""Every step of a job's life, as a call of one Lua script.

A function here says which script is run with which arguments and how its answer is read; it
touches nothing. `RecordsClient` and `AsyncRecordsClient` carry calls out. The life itself:

    queued -> running(nonce, lease) -> committing -> succeeded | failed | canceled -> expired
    running -> queued, when the lease ends or the attempt hands the job back
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from darkroom_infra.families import VaeFacts
from darkroom_infra.memory import MemoryNeed, WorkerMemory
from darkroom_infra.queue import Doorbell
from darkroom_wire.jobs import Priority

from . import tallies
from .model import (
    BatchRecord,
    BatchSpec,
    JobRecord,
    JobSpec,
    Manifest,
    State,
    from_milliseconds,
    to_milliseconds,
)
from .tallies import Tallies

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
    """An attempt's hold on a job.

    `waited_ms` is the time between submission and claim. `lost_before` says that an attempt has
    ended without a word, counted or not: maybe the job has killed its worker.
    """

    spec: JobSpec
    nonce: str
    attempts: int
    waited_ms: float
    lost_before: bool


@dataclass(frozen=True)
class Due:
    """A job on which something is to be done."""

    id: str
    rank: int
    state: State
    settled: bool
    candidate: Manifest | None


class SendState(StrEnum):
    """What became of a webhook event."""

    PENDING = "pending"
    DELIVERED = "delivered"
    GONE = "gone"
    EXHAUSTED = "exhausted"
    FORBIDDEN = "forbidden"


@dataclass(frozen=True)
class Posted:
    """A webhook event that is to be sent: about which job or batch, and how often it was tried."""

    about: str
    event: str
    tries: int


@dataclass(frozen=True)
class EventState:
    """What became of an event, and when it is tried again."""

    event: str
    state: SendState
    next_attempt_at: datetime | None


@dataclass(frozen=True)
class Deliveries:
    """The attempts at sending, oldest first, and what became of each event."""

    attempts: tuple[Mapping[str, Any], ...]
    events: tuple[EventState, ...]


@dataclass(frozen=True)
class Change:
    """A change of a job's state. `number` counts them; the submission itself is 1."""

    number: int
    at: datetime
    state: State


@dataclass(frozen=True)
class Presence:
    """The VAEs that living workers hold, and what is known of every VAE that was ever loaded.

    `budget` is the largest number of bytes that one of the living workers has for a decode; None
    where none lives.
    """

    loaded: frozenset[str]
    facts: Mapping[str, VaeFacts]
    needs: Mapping[str, MemoryNeed] = field(default_factory=dict)
    budget: int | None = None


@dataclass(frozen=True)
class VaeDetails:
    """What a pipeline asks of a VAE: its `config.json`, and statistics that lie in its weights."""

    config: Mapping[str, Any]
    buffers: Mapping[str, Sequence[float]]

    def to_json(self) -> str:
        """Write the details; equal ones give equal texts."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Turn:
    """Whether an owner may submit now: how often still, and when once more and as often as ever."""

    taken: bool
    left: int
    whole_in: timedelta
    next_in: timedelta


@dataclass(frozen=True)
class Statistics:
    """What waits and who works."""

    depth: Mapping[Priority, int]
    backlog: Mapping[str, int]
    running: int
    workers: int
    finished_last_minute: int
    oldest_ms: int | None


def lineage(name: str) -> Call[str]:
    """Name what Redis holds; `name` is taken where it has no name. Emptied, it loses its name."""
    return Call("lineage", (name,), str)


def begin_epoch(lineage: str) -> Call[bool]:
    """Declare that records and ledger agree; False if Redis was emptied since it was so named."""
    return Call("begin_epoch", (lineage,), bool)


def pace(owner: str, most: int, window: timedelta) -> Call[Turn]:
    """Take one of an owner's submissions, of which so many come back within a window."""

    def parse(answer: Any) -> Turn:
        taken, left, *milliseconds = answer
        whole_in, next_in = (timedelta(milliseconds=each) for each in milliseconds)
        return Turn(bool(taken), left, whole_in, next_in)

    return Call("pace", (owner, most, _ms(window)), parse)


def admit(
    owner: str, idempotency: str, fingerprint: str, new_id: str, limit: int, count: int = 1
) -> Call[tuple[Admission, str]]:
    """Ask whether a submission of so many jobs may go on, and under which id."""
    return Call(
        "admit",
        (owner, idempotency, fingerprint, new_id, limit, _ms(IDEMPOTENCY_KEPT), count),
        lambda answer: (Admission(answer[0]), answer[1]),
    )


def accept(spec: JobSpec, *, rebuilding: bool = False, sent: Sequence[str] = ()) -> Call[str]:
    """Put a new job on record and ring for it: `accepted`, `known`, `recovering` or `gone`.

    `gone` says that the batch to which it belongs was deleted. `sent` names the webhook events that
    need not be sent any more.
    """
    rank = spec.options.priority.rank
    return Call(
        "accept",
        (
            spec.id,
            # The reservation has these; only a rebuild needs them, and it has the ledger's spec.
            spec.model_dump_json(exclude_defaults=True, exclude={"idempotency", "fingerprint"}),
            spec.owner,
            spec.options.vae,
            rank,
            to_milliseconds(spec.created_at),
            *_bell(spec.id, rank),
            int(rebuilding),
            spec.idempotency,
            spec.fingerprint,
            _ms(IDEMPOTENCY_KEPT),
            spec.batch_id or "",
            ",".join(event for event in spec.events.split(",") if event not in sent),
        ),
        str,
    )


def claim(job_id: str, nonce: str, lease: timedelta) -> Call[Claim | None]:
    """Take a queued job; None if it is not to be had."""

    def read(answer: Any) -> Claim | None:
        if not answer:
            return None
        spec, attempts, waited, lost = answer
        return Claim(JobSpec.model_validate_json(spec), nonce, attempts, waited, bool(lost))

    return Call("claim", (job_id, nonce, _ms(lease)), read)


def begin(job_id: str, nonce: str) -> Call[bool]:
    """Note that the device has begun; False if the attempt has lost the job."""
    return Call("begin", (job_id, nonce), bool)


def extend(job_id: str, nonce: str, lease: timedelta, progress: float) -> Call[bool]:
    """Renew a lease; False if the attempt has lost the job."""
    return Call("extend", (job_id, nonce, _ms(lease), round(progress, 3)), bool)


def begin_commit(nonce: str, lease: timedelta, candidate: Manifest) -> Call[bool]:
    """Announce a result that is stored; False if the attempt has lost the job."""
    arguments = (candidate.job_id, nonce, _ms(lease), candidate.model_dump_json())
    return Call("begin_commit", arguments, bool)


def finish(manifest: Manifest, *, unclaimed: bool = False) -> Call[str]:
    """Follow the manifest in the ledger: `finished`, `known` or `unknown`.

    `unclaimed` leaves a job with an attempt under way as it is: `claimed`. Only so may a job end
    without a manifest in the ledger, and only if the ledger is about to lose the job as well.
    """
    arguments = (
        manifest.job_id,
        manifest.model_dump_json(),
        manifest.status.value,
        to_milliseconds(manifest.finished_at),
        to_milliseconds(manifest.expires_at),
        int(unclaimed),
        *tallies.of_ending(manifest),
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


def settle(job_id: str) -> Call[str]:
    """Note that a retired job's objects are gone; name a batch whose latents are needed no more."""
    return Call("settle", (job_id, _ms(RECORD_KEPT)), str)


def forget(job_id: str) -> Call[bool]:
    """Remove a settled job's record."""
    return Call("forget", (job_id,), bool)


def states(job_ids: Sequence[str]) -> Call[list[State | None]]:
    """Read the states of many jobs; None for those that are not on record."""
    return Call(
        "states",
        tuple(job_ids),
        lambda answer: [State(state) if state else None for state in answer],
    )


def read(job_id: str) -> Call[JobRecord | None]:
    """Read one record."""
    return Call("read", (job_id,), _record)


def list_jobs(
    owner: str, states: Sequence[State], cursor: str | None, length: int, batch: str = ""
) -> Call[tuple[list[JobRecord], str | None]]:
    """Read a page of an owner's or a batch's records, newest first, and the next page's cursor."""

    def parse(answer: Any) -> tuple[list[JobRecord], str | None]:
        following, page = answer
        records = (_record(fields) for _, fields in page)
        return [record for record in records if record], following or None

    arguments = (owner, ",".join(states), cursor or "", length, LIST_LOOKED_AT, batch)
    return Call("list", arguments, parse)


def changes(job_id: str, known: int) -> Call[tuple[list[Change], JobRecord | None]]:
    """Read a job's changes after its submission that follow number `known`, and its record."""

    def parse(answer: Any) -> tuple[list[Change], JobRecord | None]:
        counted, log, fields = answer
        entries = (entry.partition(" ") for entry in log)
        found = [
            Change(counted + index, from_milliseconds(int(time)), State(state))
            for index, (time, _, state) in enumerate(entries, 2)
        ]
        return found, _record(fields)

    return Call("changes", (job_id, max(0, known - 1)), parse)


def register_batch(
    spec: BatchSpec, *, rebuilding: bool = False, sent: Sequence[str] = ()
) -> Call[int]:
    """Put a batch on record, still without its jobs; count those that are there already.

    `sent` names the webhook events that need not be sent any more.
    """
    arguments = (
        spec.id,
        spec.model_dump_json(exclude={"members"}),
        spec.owner,
        len(spec.members),
        ",".join(event for event in spec.events.split(",") if event not in sent),
        int(rebuilding),
        spec.idempotency,
        spec.fingerprint,
        _ms(IDEMPOTENCY_KEPT),
    )
    return Call("register_batch", arguments, int)


def read_batch(batch_id: str) -> Call[BatchRecord | None]:
    """Read a batch's record, a deleted one too."""
    return Call("read_batch", (batch_id,), _batch)


def members(batch_id: str, cursor: str, length: int) -> Call[list[JobRecord]]:
    """Read a page of a batch's jobs, in the order of its file, after the id `cursor`."""

    def parse(answer: Any) -> list[JobRecord]:
        records = (_record(fields) for fields in answer)
        return [record for record in records if record]

    return Call("members", (batch_id, cursor, length), parse)


def list_batches(
    owner: str, cursor: str | None, length: int
) -> Call[tuple[list[BatchRecord], str | None]]:
    """Read a page of an owner's batches, newest first, and the next page's cursor."""

    def parse(answer: Any) -> tuple[list[BatchRecord], str | None]:
        following, page = answer
        records = (_batch(fields) for fields in page)
        return [record for record in records if record], following or None

    return Call("list_batches", (owner, cursor or "", length), parse)


def drop_batch(batch_id: str, pause: timedelta) -> Call[bool]:
    """Let a batch be seen no more; if its objects are not gone by then, the keeper sees to it."""
    return Call("drop_batch", (batch_id, _ms(pause)), bool)


def closing(limit: int = 10) -> Call[list[tuple[str, bool]]]:
    """Name batches whose latents are needed no more, and tell whether they were deleted."""
    return Call(
        "closing", (limit,), lambda answer: [(batch, erased == "1") for batch, erased in answer]
    )


def close_batch(batch_id: str) -> Call[bool]:
    """Note that a batch's latents and spec are gone: its records may end."""
    return Call("close_batch", (batch_id, _ms(RECORD_KEPT)), bool)


def register_courier(bell: Doorbell, lease: timedelta) -> Call[bool]:
    """Say that a courier lives, and how it is rung for."""
    return Call("register_courier", (bell.queue_key, bell.message, _ms(lease)), bool)


def courier_alive() -> Call[bool]:
    """Ask whether a courier lives."""
    return Call("courier_alive", (), bool)


def take_due(limit: int, lease: timedelta) -> Call[list[Posted]]:
    """Take events that are to be sent now; nobody else gets them before the lease ends."""
    return Call(
        "take_due",
        (limit, _ms(lease)),
        lambda answer: [Posted(about, event, int(tries)) for about, event, tries in answer],
    )


def note_sent(
    posted: Posted, attempt: str, state: SendState, pause: timedelta | None
) -> Call[bool]:
    """Note one attempt at sending an event, as JSON, and when the next one is."""
    arguments = (
        posted.about,
        posted.event,
        attempt,
        state.value,
        "" if pause is None else _ms(pause),
    )
    return Call("note_sent", arguments, bool)


def deliveries(about: str) -> Call[Deliveries]:
    """Read the attempts at sending the events of a job or batch."""

    def parse(answer: Any) -> Deliveries:
        tries, events = answer
        return Deliveries(
            attempts=tuple(json.loads(entry) for entry in tries),
            events=tuple(
                EventState(
                    event,
                    SendState(state),
                    from_milliseconds(int(float(due))) if due else None,
                )
                for event, state, due in events
            ),
        )

    return Call("deliveries", (about,), parse)


def send_again(about: str) -> Call[int]:
    """Have the events of a job or batch that have happened sent again; count them."""
    return Call("send_again", (about,), int)


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


def presence(
    worker: str,
    lease: timedelta,
    vaes: Mapping[str, VaeFacts],
    details: Mapping[str, VaeDetails] = MappingProxyType({}),
    memory: WorkerMemory | None = None,
) -> Call[frozenset[str]]:
    """Say that a worker lives, what it holds and has; read of which VAEs to `note_details`."""
    held = json.dumps({name: asdict(facts) for name, facts in vaes.items()})
    needs = {name: asdict(need) for name, need in memory.needs.items()} if memory else {}
    budget = int(memory.budget) if memory else ""
    digests = {
        name: hashlib.sha1(known.to_json().encode(), usedforsecurity=False).hexdigest()
        for name, known in details.items()
    }
    arguments = (worker, _ms(lease), held, json.dumps(digests), json.dumps(needs), budget)
    return Call("presence", arguments, frozenset)


def note_details(vae: str, details: VaeDetails) -> Call[bool]:
    """Put what a worker knows of a VAE on record, where it stays."""
    return Call("note_details", (vae, details.to_json()), bool)


def details(vae: str) -> Call[VaeDetails | None]:
    """Read what is known of a VAE from workers that loaded it; None if none has."""

    def parse(answer: str) -> VaeDetails | None:
        return VaeDetails(**json.loads(answer)) if answer else None

    return Call("details", (vae,), parse)


def loaded() -> Call[Presence]:
    """Read what the living workers hold."""

    def parse(answer: Any) -> Presence:
        held, budgets, facts, needs = answer
        return Presence(
            frozenset(name for vaes in held for name in json.loads(vaes)),
            {name: VaeFacts(**json.loads(value)) for name, value in _pairs(facts).items()},
            {name: MemoryNeed(**json.loads(value)) for name, value in _pairs(needs).items()},
            max(map(int, budgets), default=None),
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


def read_tallies() -> Call[Tallies]:
    """Read what was counted since Redis was last empty."""

    def parse(answer: Any) -> Tallies:
        fields, events_waiting = answer
        return tallies.parse(_pairs(fields), events_waiting)

    return Call("tallies", (), parse)


def _ms(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1000)


def _bell(job_id: str, rank: int) -> tuple[str, str, int]:
    """Give the three arguments with which a script rings: queue, message, ring after."""
    doorbell = Doorbell.for_job(job_id, rank)
    return doorbell.queue_key, doorbell.message, _ms(RING_AFTER)


def _record(fields: Sequence[Any]) -> JobRecord | None:
    return JobRecord.parse(_pairs(fields)) if fields else None


def _batch(fields: Sequence[Any]) -> BatchRecord | None:
    return BatchRecord.parse(_pairs(fields)) if fields else None


def _pairs(flat: Sequence[Any] | Mapping[str, str]) -> Mapping[str, str]:
    """Read a hash as RESP2 gives it, flat, or as RESP3 gives it, as a mapping."""
    if isinstance(flat, Mapping):
        return flat
    return dict(zip(flat[::2], flat[1::2], strict=True))
