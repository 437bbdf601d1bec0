"""Programs that die at every point where something has been done and something else has not."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Sequence

from darkroom_infra.failpoints import NAMES
from tests.conftest import eventually
from tests.faults.journal import Journal
from tests.faults.load import PAUSE, TRY_AGAIN, Caller, Load
from tests.faults.outcome import Outcome, judge
from tests.faults.processes import KILLED, Life, Service
from tests.faults.site import Site

OF_BATCHES = {"submit.registered"}
SUBMIT = sorted(name for name in NAMES - OF_BATCHES if name.startswith("submit."))
ATTEMPT = sorted(name for name in NAMES if name.startswith("attempt."))
END = sorted(name for name in NAMES if name.startswith("end."))
KEEPER = sorted(name for name in NAMES if name.startswith("keeper."))
ALL = [*SUBMIT, *ATTEMPT, *END, *KEEPER]


def attempting(site: Site, points: Sequence[str], times: int) -> Outcome:
    """Kill -9 of a worker at each point of an attempt."""
    with Load(site, backlog=40) as load:
        load.order()
        deaths = die_at(site.workers, points, times)
        load.cease()
        load.settle()
    return _judged(site, load.journal, deaths)


def submitting(site: Site, points: Sequence[str], times: int) -> Outcome:
    """Kill -9 of the API at each point of a submission."""
    with Load(site, backlog=40) as load:
        load.order()
        deaths = die_at(site.apis, points, times)
        load.cease()
        load.settle()
    return _judged(site, load.journal, deaths)


def ending(site: Site, points: Sequence[str], times: int) -> Outcome:
    """Kill -9 of the API at each point of a cancellation or a deletion."""
    with Load(site, backlog=40) as load, _Enders(site, load.journal):
        load.order()
        deaths = die_at(site.apis, points, times)
        load.cease()
        load.settle()
    return _judged(site, load.journal, deaths)


def requeuing(site: Site, times: int) -> Outcome:
    """Kill -9 of the keeper when it has queued a job again but not gone on."""
    return _keeping(site, "keeper.requeued", times, "darkroom:running", "")


def rolling_forward(site: Site, times: int) -> Outcome:
    """Kill -9 of the keeper when it has ended a job whose attempt hangs in its commit."""
    hanging = "attempt.commit_begun=hang"
    return _keeping(site, "keeper.rolled_forward", times, "darkroom:committing", hanging)


def die_at(services: Sequence[Service], points: Sequence[str], times: int) -> list[Life]:
    """Have services live one life for each point and time, each until it dies there."""
    plan = [point for point in points for _ in range(times)]
    random.shuffle(plan)
    firsts = [len(service.lives) for service in services]
    shares = [plan[number :: len(services)] for number in range(len(services))]
    for service, share in zip(services, shares, strict=True):
        for point in share:
            service.prepare(failpoints=f"{point}=kill:{random.randint(1, 3)}")
        service.kill()
    deaths = []
    for service, first, share in zip(services, firsts, shares, strict=True):
        last = first + len(share)
        eventually(
            lambda service=service, last=last: len(service.lives) > last, 60 + 30 * len(plan)
        )  # type: ignore[misc]
        deaths += service.lives[first:last]
    return deaths


def _keeping(site: Site, point: str, times: int, index: str, workers: str) -> Outcome:
    """Stop all workers while they have jobs, so that the API's keeper acts, and dies of it."""
    (api,) = site.apis
    deaths: list[Life] = []
    with Load(site, backlog=40) as load:
        load.order()
        for _ in range(times):
            for worker in site.workers if workers else ():
                worker.replace(failpoints=workers)
            deaths.append(api.replace(failpoints=f"{point}=kill"))
            _stop_within(site, index)
            deaths[-1].over.wait(60)
            for worker in site.workers:
                worker.signal(signal.SIGCONT)
        for worker in site.workers if workers else ():
            worker.kill()
        load.cease()
        load.settle()
    return _judged(site, load.journal, deaths)


def _stop_within(site: Site, index: str) -> None:
    """SIGSTOP all workers at a moment at which there are jobs in an index."""

    def stopped() -> bool:
        eventually(lambda: site.valkey.client.zcard(index), 60)
        for worker in site.workers:
            worker.signal(signal.SIGSTOP)
        if site.valkey.client.zcard(index):
            return True
        for worker in site.workers:
            worker.signal(signal.SIGCONT)
        return False

    eventually(stopped, 120)


def _judged(site: Site, journal: Journal, deaths: Sequence[Life]) -> Outcome:
    outcome = judge(site, journal)
    outcome.counts["kills"] = len(deaths)
    for life in deaths:
        if life.status != KILLED:
            outcome.violate("failpoint", f"{life.settings}: ended with {life.status}")
    return outcome


class _Enders:
    """Callers who cancel and delete jobs, and try again until they know that it was done."""

    def __init__(self, site: Site, journal: Journal) -> None:
        self._site = site
        self._journal = journal
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._end, args=(verb,), daemon=True)
            for verb in ("cancel", "delete")
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _end(self, verb: str) -> None:
        with Caller(self._site.urls()) as caller:
            while not self._stop.is_set():
                some = self._journal.some(finished=verb == "delete" and random.random() < 0.5)
                if some is None:
                    self._stop.wait(PAUSE)
                elif verb == "cancel":
                    self._insist(caller, "POST", f"/v1/jobs/{some}/cancel", {200, 409, 410})
                else:
                    self._journal.delete(some)
                    self._insist(caller, "DELETE", f"/v1/jobs/{some}", {204})

    def _insist(self, caller: Caller, method: str, path: str, settled: set[int]) -> None:
        """Repeat a call until its answer is final. A deletion is not left half done."""
        while True:
            answer = caller.call(method, path)
            if answer is not None and answer.status_code in settled:
                return
            if answer is not None and answer.status_code not in TRY_AGAIN:
                self._journal.complain(f"{method} {path} was answered {answer.text[:300]}")
                return
            self._stop.wait(PAUSE)
