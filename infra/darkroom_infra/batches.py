"""Whole batches: the steps that concern many jobs at once.

A batch is one file with the latents of all its jobs and one spec, which names them. Its jobs live
and end like any others; only what they share is looked after here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import islice
from typing import Final, TypeVar

from darkroom_wire.ids import member_id
from darkroom_wire.jobs import Status

from . import failpoints
from .ledger import CANCELED, Ledger, ending
from .records import BatchRecord, BatchSpec, Manifest, RecordsClient, State, transitions

T = TypeVar("T")
R = TypeVar("R")

AT_ONCE: Final = 32
"""So many manifests are written side by side: writing one is mostly waiting for S3."""

PAGE: Final = 500

DELETION_PAUSE: Final = timedelta(minutes=2)
"""After so long a deletion that was interrupted is taken up by the keeper."""

UNFINISHED: Final = frozenset({State.QUEUED, State.RUNNING, State.COMMITTING})


class Batches:
    """Acts on batches. Calls block; they may come from any thread.

    Every method may raise `StoreError` and `RecordsUnavailableError`; a repeat goes on.
    """

    def __init__(self, records: RecordsClient, ledger: Ledger) -> None:
        self._records = records
        self._ledger = ledger

    def put_on_record(self, spec: BatchSpec) -> bool:
        """Put a batch and all its jobs on record, durably; what is there already stays as it is.

        Returns:
            False if records are being rebuilt: the rebuild will do it.
        """
        self._records.run(transitions.register_batch(spec))
        failpoints.reach("submit.registered")
        answers = self._records.run_all(transitions.accept(job) for job in spec.jobs())
        if "recovering" in answers:
            return False
        self._records.sync()
        return True

    def complete(self, batch_id: str) -> bool:
        """Put on record what is missing of a batch that the ledger has accepted.

        Raises:
            FileNotFoundError: the ledger has no such batch.
        """
        return self.put_on_record(self._ledger.batch(batch_id))

    def cancel(self, batch: BatchRecord) -> None:
        """Cancel every job of a batch that has not ended."""
        for page in pages(job_ids(batch)):
            states = self._records.run(transitions.states(page))
            self._cancel(
                batch,
                [job_id for job_id, state in zip(page, states, strict=True) if state in UNFINISHED],
            )
        self._records.sync()

    def delete(self, batch: BatchRecord) -> None:
        """Delete a batch: its jobs are canceled if unfinished, and all that S3 has of them goes.

        Its spec goes last: once that is gone, no rebuild finds the jobs any more, whatever their
        manifests say. Therefore those that wait are canceled without one.
        """
        batch_id, ids = batch.spec.id, list(job_ids(batch))
        self._records.run(transitions.drop_batch(batch_id, DELETION_PAUSE))
        for page in pages(ids):
            endings = (_canceled(batch, job_id) for job_id in page)
            answers = self._records.run_all(
                transitions.finish(canceled, unclaimed=True) for canceled in endings
            )
            claimed = zip(page, answers, strict=True)
            self._cancel(batch, [job_id for job_id, answer in claimed if answer == "claimed"])
        failpoints.reach("end.committed")
        self._records.run_all(transitions.retire(job_id, State.DELETED) for job_id in ids)
        self._records.sync()
        self._ledger.erase_outputs(ids[0], ids[-1])
        self._ledger.erase_batch(batch_id)
        failpoints.reach("end.erased")
        self._records.run_all(transitions.settle(job_id) for job_id in ids)
        self._records.run(transitions.close_batch(batch_id))

    def close(self, batch_id: str) -> None:
        """Delete what a batch's jobs share, once none of them needs it any more."""
        self._ledger.erase_batch(batch_id)
        self._records.run(transitions.close_batch(batch_id))

    def close_due(self) -> int:
        """Close batches that are due, and finish deletions that were interrupted; count them."""
        due = self._records.run(transitions.closing())
        for batch_id, erased in due:
            record = self._records.run(transitions.read_batch(batch_id)) if erased else None
            if record is not None:
                self.delete(record)
            else:
                self.close(batch_id)
        return len(due)

    def _cancel(self, batch: BatchRecord, ids: list[str]) -> None:
        """Write the ends of jobs to the ledger, and let the records follow."""
        winners = side_by_side(lambda job_id: self._ledger.commit(_canceled(batch, job_id)), ids)
        self._records.run_all(transitions.finish(winner) for winner in winners)


def _canceled(batch: BatchRecord, job_id: str) -> Manifest:
    return ending(job_id, Status.CANCELED, timedelta(seconds=batch.spec.ttl), CANCELED)


def job_ids(batch: BatchRecord) -> Iterator[str]:
    """Give the ids of a batch's jobs, in the order of its file."""
    return (member_id(batch.spec.id, index) for index in range(batch.total))


def side_by_side(step: Callable[[T], R], items: Iterable[T], at_once: int = AT_ONCE) -> list[R]:
    """Take a step for each item, many at a time; the results come in the items' order."""
    with ThreadPoolExecutor(at_once, thread_name_prefix="batch") as pool:
        return list(pool.map(step, items))


def pages(items: Iterable[T], length: int = PAGE) -> Iterator[list[T]]:
    """Give the items in lists of some length."""
    rest = iter(items)
    while page := list(islice(rest, length)):
        yield page
