"""What must hold after any fault: S3, Redis and what callers saw, held against each other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import redis

from darkroom_infra.ledger import Ledger
from darkroom_infra.queue import DECODE_QUEUE, PRIORITIES, Doorbell
from darkroom_infra.records import Manifest
from darkroom_infra.records.client import PREFIX
from darkroom_wire.jobs import Status
from tests.faults.journal import Journal, Result

AT_ONCE = 16
INDEXES = ("line", "rings", "running", "committing")
"""Where Redis lists unfinished jobs. All are empty once everything has finished."""

FINISHED = {"succeeded", "failed", "canceled", "expired", "deleted"}


@dataclass(frozen=True)
class Violation:
    """Something that must not be: which rule, which job, and what was found."""

    rule: str
    job: str
    found: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.job}: {self.found}"


@dataclass
class Books:
    """What S3 and Redis hold at one moment.

    Attributes:
        accepted: jobs with latents and spec.
        remains: jobs with latents, spec or outputs.
        manifests: how jobs ended.
        outputs: the hash of each object under `outputs/`.
        records: the hash of each job in Redis.
        indexes: which jobs Redis lists as unfinished, and where.
        messages: doorbells that nobody has heard.
    """

    accepted: set[str] = field(default_factory=set)
    remains: set[str] = field(default_factory=set)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    records: dict[str, dict[str, str]] = field(default_factory=dict)
    indexes: dict[str, set[str]] = field(default_factory=dict)
    messages: int = 0


def read_books(ledger: Ledger, connection: redis.Redis) -> Books:
    """Read all that S3 and Redis hold of an installation that is at rest."""
    books = Books()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        inputs = [key.rpartition("/")[2] for key in ledger.store.list("inputs/")]
        specs = {name.removesuffix(".json") for name in inputs if name.endswith(".json")}
        latents = {name.partition(".")[0] for name in inputs if not name.endswith(".json")}
        books.accepted = specs & latents
        outputs = list(ledger.store.list("outputs/"))
        hashes = pool.map(lambda key: _hash(ledger, key), outputs)
        books.outputs = dict(zip(outputs, hashes, strict=True))
        books.remains = specs | latents | {key.split("/")[1] for key in outputs}
        ended = [key.split("/")[1].partition(".")[0] for key in ledger.store.list("manifests/")]
        manifests = zip(ended, pool.map(ledger.find_manifest, ended), strict=True)
        books.manifests = {job_id: manifest for job_id, manifest in manifests if manifest}
    records: Any = connection
    for key in records.scan_iter(f"{PREFIX}job:*", count=1000):
        books.records[key.removeprefix(f"{PREFIX}job:")] = records.hgetall(key)
    books.indexes = {name: set(records.zrange(PREFIX + name, 0, -1)) for name in INDEXES}
    books.messages = sum(records.llen(queue) for queue in queues())
    return books


def queues() -> list[str]:
    """Name the lists in which doorbells lie."""
    return [Doorbell.for_job("", rank).queue_key for rank in range(len(PRIORITIES))]


def _hash(ledger: Ledger, key: str) -> str:
    return hashlib.sha256(ledger.store.get(key)).hexdigest()


@dataclass(frozen=True)
class Case:
    """What is judged, and how many attempts a job may have had."""

    journal: Journal
    books: Books
    max_attempts: int = 3

    @property
    def kept(self) -> set[str]:
        """Accepted jobs that nobody deleted."""
        return self.journal.accepted - self.journal.deleted


Rule = Callable[[Case], Iterator[tuple[str, str]]]


def lost(case: Case) -> Iterator[tuple[str, str]]:
    """Every 202 ends in a manifest. There cannot be two: they would be one object."""
    for job_id in case.kept - set(case.books.manifests):
        yield job_id, "accepted, and there is no manifest"


def hollow(case: Case) -> Iterator[tuple[str, str]]:
    """Nothing is accepted that is not in S3."""
    for job_id in case.kept - case.books.accepted:
        yield job_id, "accepted, and latents or spec are not in S3"


def forgotten(case: Case) -> Iterator[tuple[str, str]]:
    """Every accepted job is on record."""
    for job_id in case.kept - set(case.books.records):
        yield job_id, "accepted, and not on record"


def uncalled_for(case: Case) -> Iterator[tuple[str, str]]:
    """No manifest without an accepted job."""
    for job_id, manifest in case.books.manifests.items():
        if job_id in case.books.accepted or manifest.status is Status.EXPIRED:
            continue
        yield job_id, "a manifest, but no latents and spec"


def changed(case: Case) -> Iterator[tuple[str, str]]:
    """What was once seen of a finished job stays as it was."""
    for change in case.journal.changes:
        job_id, _, what = change.partition(": ")
        yield job_id, what


def untrue(case: Case) -> Iterator[tuple[str, str]]:
    """What callers saw of a finished job is what its manifest says."""
    for job_id, seen in case.journal.results.items():
        manifest = case.books.manifests.get(job_id)
        if manifest is None or job_id in case.journal.deleted:
            continue
        if seen != told_by(manifest):
            yield job_id, f"callers saw {seen}, the manifest says {told_by(manifest)}"


def unserved(case: Case) -> Iterator[tuple[str, str]]:
    """Every output that a manifest names is there, with the bytes of its hash."""
    for job_id, manifest in case.books.manifests.items():
        if manifest.status is Status.SUCCEEDED and not manifest.outputs:
            yield job_id, "succeeded without an output"
        for output in manifest.outputs:
            found = case.books.outputs.get(output.key)
            if found != output.sha256:
                yield job_id, f"{output.key} is {found or 'missing'}, not {output.sha256}"


def stuck(case: Case) -> Iterator[tuple[str, str]]:
    """At rest no job waits, runs or commits, and no doorbell is left."""
    for job_id, record in case.books.records.items():
        if record.get("state") not in FINISHED:
            yield job_id, f"still {record.get('state')}"
    for name, jobs in case.books.indexes.items():
        for job_id in jobs:
            yield job_id, f"still listed in {name!r}"
    if case.books.messages:
        yield DECODE_QUEUE, f"{case.books.messages} messages left"


def disagreeing(case: Case) -> Iterator[tuple[str, str]]:
    """Records follow the ledger."""
    for job_id, record in case.books.records.items():
        manifest = case.books.manifests.get(job_id)
        state = record.get("state")
        if manifest is None:
            if state in FINISHED:
                yield job_id, f"{state} on record, without a manifest"
        elif state in FINISHED - {"expired", "deleted"} and state != manifest.status:
            yield job_id, f"{state} on record, {manifest.status} in the manifest"


def overtried(case: Case) -> Iterator[tuple[str, str]]:
    """No job was tried more often than is allowed."""
    for job_id, record in case.books.records.items():
        if int(record.get("attempts", 0)) > case.max_attempts:
            yield job_id, f"{record['attempts']} attempts, {case.max_attempts} are allowed"


def doubled(case: Case) -> Iterator[tuple[str, str]]:
    """One idempotency key stands for one job."""
    for key, jobs in case.journal.answers.items():
        if len(jobs) > 1:
            yield key, f"answered with {len(jobs)} jobs: {', '.join(sorted(jobs))}"


def undead(case: Case) -> Iterator[tuple[str, str]]:
    """Of a deleted job nothing is left but a manifest that says so."""
    for job_id in case.journal.deleted:
        if job_id in case.books.remains:
            yield job_id, "deleted, and latents, spec or outputs are still there"
        manifest = case.books.manifests.get(job_id)
        if manifest is not None and (manifest.status is not Status.EXPIRED or manifest.outputs):
            yield job_id, f"deleted, and its manifest says {manifest.status}"


def wrong(case: Case) -> Iterator[tuple[str, str]]:
    """Callers get no answer that the contract does not know."""
    for what in case.journal.wrong:
        yield "-", what


def vanished(case: Case) -> Iterator[tuple[str, str]]:
    """An accepted job is never said not to exist."""
    for job_id, times in case.journal.vanished.items():
        yield job_id, f"not found, {times} times"


def unheard(case: Case) -> Iterator[tuple[str, str]]:
    """Every end of a job with a callback was told at least once, always under one id."""
    for job_id, wanted in case.journal.callbacks.items():
        result = case.journal.results.get(job_id)
        event = f"job.{result.status}" if result else ""
        if event in wanted and not case.journal.events.get((job_id, event)):
            yield job_id, f"no event {event}"
    for (job_id, event), ids in case.journal.events.items():
        if len(set(ids)) > 1:
            yield job_id, f"event {event} under {len(set(ids))} ids"


RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (
        *(lost, hollow, forgotten, uncalled_for, changed, untrue, unserved, stuck, disagreeing),
        *(overtried, doubled, undead, wrong, vanished, unheard),
    )
}


def violations(case: Case) -> list[Violation]:
    """Hold everything against everything."""
    return [
        Violation(name, job, found) for name, rule in RULES.items() for job, found in rule(case)
    ]


def told_by(manifest: Manifest) -> Result:
    """What callers are to see of a job with this manifest."""
    outputs = tuple((output.key, output.sha256) for output in manifest.outputs)
    return Result(manifest.status.value, outputs)
