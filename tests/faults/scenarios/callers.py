"""Callers who repeat themselves."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

from tests.faults.journal import Journal
from tests.faults.load import Caller, Load, look, submit
from tests.faults.outcome import Outcome, judge
from tests.faults.scenarios.workers import latents
from tests.faults.site import Site


def at_once(site: Site, callers: int) -> Outcome:
    """One Idempotency-Key from many callers in parallel, over two APIs."""
    key = str(uuid.uuid4())
    second = site.add_api()
    site.await_ready()
    before = set(site.ledger.accepted())
    start = threading.Barrier(callers)
    with Load(site) as load:

        def call(_: int) -> str | None:
            start.wait()
            options = {"vae": "demo"}
            with Caller(site.urls()) as caller:
                return submit(caller, load.journal, latents(0.5), options, threading.Event(), key)

        with ThreadPoolExecutor(callers) as pool:
            ids = set(pool.map(call, range(callers)))
        _follow(site, load.journal, ids)
        load.settle()
    site.apis.remove(second)
    second.close()
    outcome = judge(site, load.journal)
    outcome.counts["callers"] = callers
    outcome.counts["jobs in S3"] = len(set(site.ledger.accepted()) - before)
    if len(ids) != 1 or outcome.counts["jobs in S3"] != 1:
        outcome.violate("doubled", f"{outcome.counts['jobs in S3']} jobs in S3, answers: {ids}")
    return outcome


def _follow(site: Site, journal: Journal, ids: set[str | None]) -> None:
    with Caller(site.urls()) as caller:
        for job_id in ids:
            while job_id is not None and not look(caller, journal, job_id, wait=5):
                pass
