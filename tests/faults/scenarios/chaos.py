"""Everything at once: faults at random, one before the last has been got over."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Mapping

from tests.faults.load import Load
from tests.faults.outcome import Outcome, judge
from tests.faults.proxy import Trouble
from tests.faults.site import Site


def _kill_worker(site: Site) -> None:
    random.choice(site.workers).kill()


def _kill_api(site: Site) -> None:
    random.choice(site.apis).kill()


def _stop_worker(site: Site) -> None:
    random.choice(site.workers).signal(signal.SIGSTOP)


def _continue_workers(site: Site) -> None:
    for worker in site.workers:
        worker.signal(signal.SIGCONT)


def _restart_worker(site: Site) -> None:
    random.choice(site.workers).signal(signal.SIGTERM)


def _kill_valkey(site: Site) -> None:
    site.valkey.restart()


def _empty_valkey(site: Site) -> None:
    site.valkey.client.flushall()


def _cut_redis(site: Site) -> None:
    site.redis_line.heal()


def _cut_puts(site: Site) -> None:
    site.s3_line.disturb(Trouble(where=b"PUT ", cut_request_after=300, times=5), cut=False)


def _lose_answers(site: Site) -> None:
    site.s3_line.disturb(Trouble(where=b"PUT ", cut_answer_after=0, times=5), cut=False)


def _break_s3(site: Site) -> None:
    site.s3_line.disturb(Trouble(answer=500, times=40))


FAULTS: Mapping[str, Callable[[Site], None]] = {
    "worker killed": _kill_worker,
    "API killed": _kill_api,
    "worker held up": _stop_worker,
    "workers continued": _continue_workers,
    "worker restarted": _restart_worker,
    "Valkey killed": _kill_valkey,
    "Valkey emptied": _empty_valkey,
    "connections to Redis cut": _cut_redis,
    "PUTs cut": _cut_puts,
    "answers lost": _lose_answers,
    "S3 answering 500": _break_s3,
}


def everything(site: Site, faults: int) -> Outcome:
    """Do random faults, up to a second apart, whatever has become of the ones before."""
    with Load(site, backlog=60) as load:
        load.order()
        for _ in range(faults):
            FAULTS[random.choice(list(FAULTS))](site)
            threading.Event().wait(random.random())
        _continue_workers(site)
        site.s3_line.heal()
        load.cease()
        load.settle()
    outcome = judge(site, load.journal)
    outcome.counts["faults"] = faults
    return outcome
