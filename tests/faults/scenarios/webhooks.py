"""Couriers that are killed between a delivery and its note, and an outbox that is lost."""

from __future__ import annotations

import base64
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.conftest import eventually
from tests.faults.invariants import Books, Case, unheard
from tests.faults.load import Load
from tests.faults.outcome import Outcome, judge
from tests.faults.receiver import Receiver
from tests.faults.scenarios import points
from tests.faults.site import Lab, Site

DELIVER = ("deliver.sent", "deliver.noted")
EVENTS = frozenset({"job.succeeded", "job.failed", "job.canceled"})
SETTINGS = {
    "webhook_secret": "whsec_" + base64.b64encode(bytes(32)).decode(),
    "webhook_allow": "127.0.0.0/8",
    "webhook_schedule": "0,0.5,0.5,1,1,2,2,5,5",
}
PATIENCE = 150.0
"""An event that a dead courier had taken is free again after 30 s."""


def delivering(lab: Lab, times: int) -> Outcome:
    """Kill -9 of the courier between sending and noting, and after it."""
    return _told(lab, lambda site, _: len(points.die_at(site.couriers, DELIVER, times)))


def forgetting(lab: Lab, times: int) -> Outcome:
    """FLUSHALL while events wait: the outbox is made again from S3."""

    def forget(site: Site, load: Load) -> int:
        for _ in range(times):
            load.wait_finished(10)
            site.valkey.client.flushall()
        return times

    return _told(lab, forget)


def _told(lab: Lab, harm: Callable[[Site, Load], int]) -> Outcome:
    with lab.site(**SETTINGS) as site:
        site.add_courier()
        load = Load(site, backlog=40)
        with Receiver(load.journal) as receiver, load:
            load.options["callback_url"] = receiver.url
            load.order()
            harms = harm(site, load)
            load.cease()
            load.settle()
            journal = load.journal
            journal.callbacks = dict.fromkeys(journal.accepted, EVENTS)
            with suppress(pytest.fail.Exception):  # the checker says more
                eventually(lambda: not any(unheard(Case(journal, Books()))), PATIENCE)
            outcome = judge(site, journal)
    outcome.counts["harms"] = harms
    outcome.counts["events"] = len(journal.events)
    outcome.counts["events told twice"] = sum(len(ids) > 1 for ids in journal.events.values())
    return outcome
