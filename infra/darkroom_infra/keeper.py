"""The keeper: sees to it that every accepted job ends, and that nothing stays too long.

Each API and each worker runs one in a thread; a lock lets one at a time act. It only repeats steps
that check for themselves, so two at once would do no harm.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta

from darkroom_wire.jobs import JobError, Status
from darkroom_wire.problems import problem_type

from . import failpoints
from .batches import Batches
from .heartbeat import Heartbeat
from .ledger import Ledger, ending
from .records import Manifest, RecordsClient, RecordsUnavailableError, State, transitions
from .store import StoreError
from .sweeping import Sweep, Swept
from .telemetry import get_logger

INTERVAL = timedelta(seconds=0.5)
LOCK = 2 * INTERVAL
"""Short, so that a keeper that died is soon replaced; two at once would do no harm."""

FAILED_KEPT = timedelta(days=1)

SWEEP_EVERY = timedelta(minutes=10)
SWEEP_LOCK = timedelta(seconds=15)
RECENT = timedelta(days=2)
"""How far a sweep goes back where Redis may have lost its latest writes, but not all."""

_log = get_logger("keeper")


class Keeper:
    """Requeues dead attempts, rings again, rolls commits forward, expires."""

    def __init__(self, records: RecordsClient, ledger: Ledger, max_attempts: int) -> None:
        self._records = records
        self._ledger = ledger
        self._batches = Batches(records, ledger)
        self._max_attempts = max_attempts
        self._name = str(uuid.uuid4())

    def run(self, stop: threading.Event) -> None:
        """Take a turn twice a second until told to stop; a turn that fails is taken again."""
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
        for job in self._records.run(transitions.due("running")):
            self._take_away(job)
        for job in self._records.run(transitions.due("committing")):
            self._roll_forward(job)
        for job in self._records.run(transitions.due("rings")):
            self._records.run(transitions.ring(job.id, job.rank))
        for job in self._records.run(transitions.due("endings")):
            self._clean_up(job)
        self._batches.close_due()

    def _take_away(self, job: transitions.Due) -> None:
        outcome = self._records.run(transitions.requeue(job.id, job.rank, self._max_attempts))
        failpoints.reach("keeper.requeued")
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
            failpoints.reach("keeper.rolled_forward")

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


class Sweeper:
    """Compares ledger and records: at once where Redis is new or was started again, and regularly.

    Each API and each worker runs one in a thread; a lock lets one at a time act.
    """

    def __init__(self, records: RecordsClient, ledger: Ledger) -> None:
        self._records = records
        self._name = str(uuid.uuid4())
        lock = Heartbeat(SWEEP_LOCK / 3, self._lock)
        self._sweep = Sweep(records, ledger, lock.beat)
        self.agreed_at = -math.inf
        """When, by the monotonic clock, the records were last known to agree with the ledger."""

    def run(self, stop: threading.Event) -> None:
        """Look twice a second until told to stop whether a sweep is due."""
        while True:
            try:
                self.turn()
            except (RecordsUnavailableError, StoreError) as error:
                _log.warning("sweeper.turn_failed", error=str(error))
            if stop.wait(INTERVAL.total_seconds()):
                return

    def turn(self) -> None:
        """Sweep if it is due, and no other sweeper is at it.

        Raises:
            RecordsUnavailableError: Redis is away.
            StoreError: S3 is away.
        """
        server = str(self._records.server()["run_id"])
        began = time.monotonic()
        lost = self._records.epoch() is None
        if not lost and self._records.swept() == server:
            self.agreed_at = began
            return
        if not self._lock():
            return
        recent = datetime.now(UTC) - RECENT
        found = self.recover() if lost else self._sweep.compare(recent)
        self._records.note_swept(server, SWEEP_EVERY.total_seconds())
        self.agreed_at = began
        gone = self._sweep.collect(recent)
        if found != Swept() or gone != Swept():
            _log.info(
                "sweeper.swept",
                whole=lost,
                restored=found.restored,
                ended=found.ended,
                deleted=gone.deleted,
            )

    def recover(self) -> Swept:
        """Compare all that the ledger has, and declare that the records agree with it.

        Raises:
            RecordsUnavailableError, StoreError: Redis or S3 is away; a repeat goes on.
        """
        found = Swept()
        while True:
            # Emptied meanwhile, what was put on record is gone: then it begins anew.
            lineage = self._records.run(transitions.lineage(str(uuid.uuid4())))
            found += self._sweep.compare()
            if self._records.run(transitions.begin_epoch(lineage)):
                return found

    def _lock(self) -> bool:
        return self._records.try_lock("sweep", self._name, SWEEP_LOCK.total_seconds())
