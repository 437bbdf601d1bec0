"""The keeper: sees to it that every accepted job ends, and that nothing stays too long.

Each API and each worker runs one in a thread; a lock lets one at a time act. It only repeats steps
that check for themselves, so two at once would do no harm.
"""

from __future__ import annotations

import threading
import uuid
from datetime import timedelta

from darkroom_wire.jobs import JobError, Status
from darkroom_wire.problems import problem_type

from .ledger import Ledger, ending
from .records import Manifest, RecordsClient, RecordsUnavailableError, State, transitions
from .store import StoreError
from .telemetry import get_logger

INTERVAL = timedelta(seconds=1)
LOCK = 2 * INTERVAL
"""Short, so that a keeper that died is soon replaced; two at once would do no harm."""

FAILED_KEPT = timedelta(days=1)

_log = get_logger("keeper")


class Keeper:
    """Requeues dead attempts, rings again, rolls commits forward, expires, rebuilds."""

    def __init__(self, records: RecordsClient, ledger: Ledger, max_attempts: int) -> None:
        self._records = records
        self._ledger = ledger
        self._max_attempts = max_attempts
        self._name = str(uuid.uuid4())
        self._run_id: str | None = None

    def run(self, stop: threading.Event) -> None:
        """Take a turn every second until told to stop; a turn that fails is taken again."""
        while not stop.wait(INTERVAL.total_seconds()):
            try:
                self.turn()
            except (RecordsUnavailableError, StoreError) as error:
                _log.warning("keeper.turn_failed", error=str(error))

    def turn(self) -> None:
        """Do once all that is due, if no other keeper is at it.

        Raises:
            RecordsUnavailableError: Redis is away.
            StoreError: S3 is away.
        """
        if not self._records.try_lock("keeper", self._name, LOCK.total_seconds()):
            return
        self._rebuild_if_lost()
        for job in self._records.run(transitions.due("running")):
            self._take_away(job)
        for job in self._records.run(transitions.due("committing")):
            self._roll_forward(job)
        for job in self._records.run(transitions.due("rings")):
            self._records.run(transitions.ring(job.id, job.rank))
        for job in self._records.run(transitions.due("endings")):
            self._clean_up(job)

    def rebuild(self) -> int:
        """Put on record every job that the ledger has and the records have not; count them."""
        count = 0
        for spec in self._ledger.specs():
            if self._records.run(transitions.accept(spec, rebuilding=True)) != "accepted":
                continue
            count += 1
            manifest = self._ledger.find_manifest(spec.id)
            if manifest is not None:
                self._records.run(transitions.finish(manifest))
        self._records.begin_epoch(str(uuid.uuid4()))
        return count

    def _rebuild_if_lost(self) -> None:
        """Compare records and ledger where Redis is new, or was started again."""
        run_id = str(self._records.server()["run_id"])
        if self._records.epoch() is None or self._run_id not in (None, run_id):
            count = self.rebuild()
            _log.info("keeper.rebuilt", jobs=count)
        self._run_id = run_id

    def _take_away(self, job: transitions.Due) -> None:
        outcome = self._records.run(transitions.requeue(job.id, job.rank, self._max_attempts))
        _log.info("keeper.lease_ended", job=job.id, outcome=outcome)
        if outcome is transitions.Requeue.EXHAUSTED:
            error = JobError(
                type=problem_type("attempts-exhausted"),
                title="The job was given up",
                detail=f"{self._max_attempts} attempts ended without a result: the worker stopped "
                "or made no progress each time",
            )
            record = self._records.run(transitions.read(job.id))
            ttl = timedelta(seconds=record.spec.ttl) if record else FAILED_KEPT
            self._end(ending(job.id, Status.FAILED, ttl, error))

    def _roll_forward(self, job: transitions.Due) -> None:
        if job.candidate is not None:
            _log.info("keeper.rolled_forward", job=job.id)
            self._end(job.candidate)

    def _end(self, manifest: Manifest) -> None:
        self._records.run(transitions.finish(self._ledger.commit(manifest)))

    def _clean_up(self, job: transitions.Due) -> None:
        """Take the next step after a job's end: expired, its objects gone, forgotten."""
        if job.settled:
            self._ledger.forget(job.id)
            self._records.run(transitions.forget(job.id))
            return
        if job.state not in (State.EXPIRED, State.DELETED):
            self._records.run(transitions.retire(job.id, State.EXPIRED))
            _log.info("keeper.expired", job=job.id)
        self._ledger.erase(job.id)
        self._records.run(transitions.settle(job.id))
