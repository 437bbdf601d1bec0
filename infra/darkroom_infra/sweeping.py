"""The sweep: compares the ledger with the records, and removes what belongs to no job.

What S3 holds decides. A job that the ledger has accepted and the records do not know is put on
record; one that the ledger has ended and the records have not is ended. Objects that nobody will
ever ask for are deleted: latents of submissions that were refused halfway, outputs of dead
attempts, manifests of jobs that are forgotten and notes on their webhooks, uploads of which no job
can be made any more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from darkroom_wire.ids import id_time
from darkroom_wire.jobs import MAX_TTL_SECONDS, Status

from .batches import UNFINISHED, pages, side_by_side
from .ledger import Ledger
from .records import RecordsClient, State, transitions
from .records.transitions import RECORD_KEPT

AT_ONCE = 16
"""So many jobs are looked at side by side: a look is mostly waiting for S3."""

PAGE = 500

SETTLED_AFTER = timedelta(hours=1)
"""What is half there for so long will not be completed any more."""

UPLOADS_KEPT = timedelta(days=1)
"""For so long jobs can be made of an upload."""

MANIFEST_KEPT = timedelta(seconds=MAX_TTL_SECONDS) + 2 * RECORD_KEPT
"""After so long since its submission no job has a record any more."""


@dataclass(frozen=True)
class Swept:
    """What a sweep found: jobs put on record, jobs ended, objects deleted."""

    restored: int = 0
    ended: int = 0
    deleted: int = 0

    def __add__(self, other: Swept) -> Swept:
        return Swept(
            self.restored + other.restored,
            self.ended + other.ended,
            self.deleted + other.deleted,
        )


class Sweep:
    """Compares and removes. Every step checks for itself, so two sweeps at once do no harm."""

    def __init__(
        self, records: RecordsClient, ledger: Ledger, on_progress: Callable[[], None]
    ) -> None:
        self._records = records
        self._ledger = ledger
        self._on_progress = on_progress

    def compare(self, since: datetime | None = None) -> Swept:
        """Bring the records to what the ledger says of jobs submitted since then, or of all.

        Raises:
            RecordsUnavailableError, StoreError: Redis or S3 is away; a repeat goes on.
        """
        ended, sent = set(self._ledger.ended(since)), self._ledger.sent(since)
        missing = self._in_states((None,), self._ledger.accepted(since))
        restored = self._each(
            lambda job_id: self._restore(job_id, ended, sent.get(job_id, ())), missing
        )
        found = Swept(restored=sum(restored))
        for batch_id in self._ledger.batches(since):
            found += self._compare_batch(batch_id, ended, sent)
        # Listed anew, now that all are on record: some may have ended while they were not, and some
        # may have been put there by another sweep, which has not come so far yet.
        behind = self._in_states(UNFINISHED, self._ledger.ended(since))
        return found + Swept(ended=sum(self._each(self._follow, behind)))

    def collect(self, since: datetime) -> Swept:
        """Delete what belongs to no job of those submitted since then, old manifests and uploads.

        Raises:
            RecordsUnavailableError, StoreError: Redis or S3 is away; a repeat goes on.
        """
        now = datetime.now(UTC)
        settled = now - SETTLED_AFTER
        keys = [
            key for key, job_id in self._ledger.half_accepted(since) if id_time(job_id) < settled
        ]
        keys += self._dead_outputs(since, settled)
        keys += list(self._ledger.manifests_before(now - MANIFEST_KEPT))
        keys += list(self._ledger.notes_before(now - MANIFEST_KEPT))
        keys += list(self._ledger.uploads_before(settled - UPLOADS_KEPT))
        self._ledger.store.delete(keys)
        return Swept(deleted=len(keys))

    def _restore(self, job_id: str, ended: set[str], sent: Sequence[str]) -> int:
        self._on_progress()
        try:
            spec = self._ledger.spec(job_id)
        except FileNotFoundError:  # deleted meanwhile
            return 0
        if self._records.run(transitions.accept(spec, rebuilding=True, sent=sent)) != "accepted":
            return 0
        if job_id in ended:
            self._follow(job_id)
        return 1

    def _compare_batch(
        self, batch_id: str, ended: set[str], sent: Mapping[str, Sequence[str]]
    ) -> Swept:
        """Put on record what is missing of a batch."""
        self._on_progress()
        record = self._records.run(transitions.read_batch(batch_id))
        if record is None or (record.registered < record.total and not record.erased):
            return self._restore_batch(batch_id, ended, sent)
        return Swept()

    def _restore_batch(
        self, batch_id: str, ended: set[str], sent: Mapping[str, Sequence[str]]
    ) -> Swept:
        try:
            spec = self._ledger.batch(batch_id)
        except FileNotFoundError:  # deleted meanwhile
            return Swept()
        self._records.run(
            transitions.register_batch(spec, rebuilding=True, sent=sent.get(batch_id, ()))
        )
        answers = self._records.run_all(
            transitions.accept(job, rebuilding=True, sent=sent.get(job.id, ()))
            for job in spec.jobs()
        )
        restored = [
            member.id
            for member, answer in zip(spec.members, answers, strict=True)
            if answer == "accepted"
        ]
        self._each(self._follow, [job_id for job_id in restored if job_id in ended])
        return Swept(restored=len(restored))

    def _follow(self, job_id: str) -> int:
        """End a job on record as the ledger says."""
        self._on_progress()
        manifest = self._ledger.find_manifest(job_id)
        if manifest is None:
            return 0
        followed = self._records.run(transitions.finish(manifest)) == "finished"
        if manifest.status is Status.EXPIRED:  # so says only the manifest of a deleted job
            self._records.run(transitions.retire(job_id, State.DELETED))
        return int(followed)

    def _dead_outputs(self, since: datetime, settled: datetime) -> list[str]:
        """Find outputs of attempts that did not make the result of their job."""
        by_job: defaultdict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for key, job_id, nonce in self._ledger.outputs(since):
            if id_time(job_id) < settled:
                by_job[job_id][nonce].append(key)
        dead: list[str] = []
        for page in pages(by_job, PAGE):
            states = self._records.run(transitions.states(page))
            for job_id, state in zip(page, states, strict=True):
                dead += self._dead_of(job_id, state, by_job[job_id])
        return dead

    def _dead_of(
        self, job_id: str, state: State | None, attempts: dict[str, list[str]]
    ) -> list[str]:
        if state in UNFINISHED or (state is State.SUCCEEDED and len(attempts) == 1):
            return []
        manifest = self._ledger.find_manifest(job_id)
        if manifest is None and state is not None:
            return []
        kept = {output.key for output in manifest.outputs} if manifest else set[str]()
        if manifest is not None and manifest.status is not Status.SUCCEEDED:
            kept = set()
        return [key for keys in attempts.values() for key in keys if key not in kept]

    def _in_states(self, wanted: Collection[State | None], job_ids: Iterable[str]) -> list[str]:
        """Find which jobs are in one of these states; None stands for jobs not on record."""
        found: list[str] = []
        for page in pages(job_ids, PAGE):
            states = self._records.run(transitions.states(page))
            found += [job for job, state in zip(page, states, strict=True) if state in wanted]
        return found

    def _each(self, step: Callable[[str], int], ids: list[str]) -> list[int]:
        return side_by_side(step, ids, AT_ONCE)
