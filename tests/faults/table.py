"""The full table: each fault at full size, what is promised, and what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.outcome import Outcome, median, percentile
from tests.faults.scenarios import callers, chaos, points, records, store, webhooks, workers
from tests.faults.site import Lab

LEASE = 2.0
REQUEUE_SLACK = 2.0
RESUME_GOAL = 5.0
REBUILD_GOAL = 60.0
REPLACE_GOAL = 5.0
DEADLINE = 3.0


@dataclass(frozen=True)
class Figure:
    """A goal, what was found, and whether that is as good."""

    goal: str
    found: str
    met: bool


@dataclass(frozen=True)
class Row:
    """One line of the table: how to run it, and how to read what came of it."""

    name: str
    title: str
    run: Callable[[Lab], Outcome]
    read: Callable[[Outcome], list[Figure]]


def whole(outcome: Outcome) -> list[Figure]:
    """Nothing lost, nothing twice, and no other violation."""
    counts = outcome.counts
    found = f"{counts['lost']} lost, {counts['changed'] + counts['doubled']} double"
    others = len(outcome.violations)
    if others and not (counts["lost"] or counts["changed"] or counts["doubled"]):
        found += f"; {others} other violations"
    met = not outcome.violations
    return [Figure("0 lost, 0 double", f"{found} ({counts['jobs']:,} jobs)", met)]


def within(outcome: Outcome, name: str, goal: float, what: str) -> Figure:
    """The slowest of a hundred, held against a goal in seconds."""
    times = outcome.seconds.get(name, [])
    if len(times) < 20:
        worst, label = max(times, default=float("nan")), "longest"
    else:
        worst, label = percentile(times, 99), "p99"
    found = f"{label} {worst:.1f} s, median {median(times):.1f} s ({len(times)} times)"
    return Figure(f"{what} within {goal:.0f} s", found, worst <= goal)


def count(outcome: Outcome, name: str, goal: int, what: str) -> Figure:
    """A count that has to be met exactly."""
    return Figure(what, f"{outcome.counts[name]:,}", outcome.counts[name] == goal)


def _on_site(
    scenario: Callable[..., Outcome], *, trials: int = 1, crew: int = 2, **sizes: int
) -> Callable[[Lab], Outcome]:
    """Have a scenario run so many times on one site with so many workers, and add up."""

    def run(lab: Lab) -> Outcome:
        outcome = Outcome()
        with lab.site(workers=crew) as site:
            for _ in range(trials):
                outcome.add(scenario(site, **sizes))
        return outcome

    return run


def _points(lab: Lab) -> Outcome:
    with lab.site() as site:
        outcome = points.attempting(site, points.ATTEMPT, times=20)
        outcome.add(points.submitting(site, points.SUBMIT, times=20))
        outcome.add(points.ending(site, points.END, times=20))
        outcome.add(points.requeuing(site, times=20))
        outcome.add(points.rolling_forward(site, times=20))
    return outcome


def _store(lab: Lab) -> Outcome:
    with lab.site() as site:
        outcome = store.troubled(site, seconds=60, names=("away",))
        others = tuple(name for name in store.TROUBLES if name != "away")
        outcome.add(store.troubled(site, seconds=20, names=others))
    return outcome


def _poisoned(lab: Lab) -> Outcome:
    outcome = Outcome()
    for _ in range(5):
        with lab.site() as site:
            outcome.add(workers.poisoned(site, innocents=100))
    return outcome


def _hung(lab: Lab) -> Outcome:
    outcome = Outcome()
    for _ in range(3):
        with lab.site(attempt_seconds=str(DEADLINE)) as site:
            outcome.add(workers.hung(site, innocents=100, deadline=DEADLINE))
    return outcome


def _everything(lab: Lab) -> Outcome:
    with lab.site(apis=2, workers=3, max_attempts="20") as site:
        return chaos.everything(site, faults=300)


def _refused(outcome: Outcome) -> list[Figure]:
    answers = outcome.counts["answers 503"]
    return [Figure("submissions are answered 503", f"{answers:,} were", answers > 0)]


def _told(outcome: Outcome) -> list[Figure]:
    unheard = sum(violation.rule == "unheard" for violation in outcome.violations)
    twice = outcome.counts["events told twice"]
    found = f"{unheard} missing of {outcome.counts['events']:,}, {twice} came twice"
    return [*whole(outcome), Figure("every event told, under one id", found, not unheard)]


ROWS = [
    Row(
        "killed-workers",
        "200 kill -9 of workers at random moments, 5,000 jobs",
        _on_site(workers.killed, crew=3, kills=200, jobs=5_000),
        lambda o: [
            *whole(o),
            within(o, "requeued", LEASE + REQUEUE_SLACK, f"lease {LEASE:.0f} s: requeued"),
        ],
    ),
    Row(
        "every-point",
        f"kill -9 at each of {len(points.ALL)} points of submit, attempt, end and keeper, 20 times",
        _points,
        lambda o: [*whole(o), count(o, "kills", 20 * len(points.ALL), "each point reached")],
    ),
    Row(
        "killed-valkey",
        "30 kill -9 of Valkey under load",
        _on_site(records.killed, crew=3, kills=30),
        lambda o: [
            *whole(o),
            within(o, "resumed", RESUME_GOAL, "work goes on"),
            count(o, "workers that ended", 0, "no worker ends or stays deaf"),
        ],
    ),
    Row(
        "emptied",
        "20 FLUSHALL under load",
        _on_site(records.emptied, times=20),
        lambda o: [*whole(o), within(o, "accepting again", REBUILD_GOAL, "accepts again")],
    ),
    Row(
        "emptied-twice",
        "20 times FLUSHALL, and again while the records are being rebuilt",
        _on_site(records.emptied_twice, times=20),
        lambda o: [*whole(o), within(o, "accepting again", REBUILD_GOAL, "accepts again")],
    ),
    Row(
        "cut-short",
        "20 kill -9 of Valkey with 30 % of its append-only file lost",
        _on_site(records.cut_short, times=20),
        lambda o: [*whole(o), within(o, "accepting again", REBUILD_GOAL, "accepts again")],
    ),
    Row(
        "rebuilt",
        "10,000 jobs, half of them ended, put on record by `darkroom recover`",
        lambda lab: records.rebuilt(lab, jobs=10_000),
        lambda o: [*whole(o), within(o, "rebuilt", REBUILD_GOAL, "done")],
    ),
    Row(
        "held-up",
        "50 SIGSTOP of a worker until others have its jobs, then SIGCONT",
        _on_site(workers.held_up, times=50),
        lambda o: [
            *whole(o),
            Figure(
                "every stale attempt refused",
                f"{o.counts['refused']} refused of {o.counts['stale']} stale",
                o.counts["refused"] >= o.counts["stale"],
            ),
        ],
    ),
    Row(
        "store-in-trouble",
        "S3 away for 60 s; 20 s each of 500, 503, 507, 2 kB/s, silence",
        _store,
        lambda o: [
            *whole(o),
            *(within(o, name, RESUME_GOAL, name) for name in sorted(o.seconds)),
        ],
    ),
    Row(
        "store-cut",
        "360 connections to S3 cut in a PUT, before its answer, in the answer to a GET",
        _on_site(store.cut, times=20),
        whole,
    ),
    Row(
        "killed-store",
        "5 kill -9 of SeaweedFS under load",
        lambda lab: store.killed(lab, kills=5),
        lambda o: [*whole(o), within(o, "resumed", RESUME_GOAL, "work goes on")],
    ),
    Row(
        "lost-doorbells",
        "the first doorbell of each of 500 jobs lost",
        _on_site(records.deaf, jobs=500),
        lambda o: [*whole(o), count(o, "messages", 500, "500 messages swallowed")],
    ),
    Row(
        "doubled-doorbells",
        "every doorbell of 500 jobs delivered twice",
        _on_site(records.echoing, jobs=500),
        whole,
    ),
    Row(
        "poison",
        "5 jobs that kill each process that decodes them, among 100 others",
        _poisoned,
        lambda o: [
            *whole(o),
            count(o, "harmed", 0, "given up after 3 attempts, no other job fails"),
        ],
    ),
    Row(
        "hung",
        f"3 jobs whose decode never ends, deadline {DEADLINE:.0f} s, among 100 others",
        _hung,
        lambda o: [
            *whole(o),
            within(o, "beyond the deadline", REPLACE_GOAL, "process ended after its deadline"),
            count(o, "harmed", 0, "given up after 3 attempts, no other job fails"),
        ],
    ),
    Row(
        "rolling-restart",
        "20 SIGTERM of workers, one after the other, half without time to finish",
        _on_site(workers.rolled, times=20),
        lambda o: [*whole(o), count(o, "burned", 0, "0 attempts burned")],
    ),
    Row(
        "one-key",
        "one Idempotency-Key from 100 callers in parallel over two APIs, 10 times",
        _on_site(callers.at_once, trials=10, callers=100),
        lambda o: [*whole(o), count(o, "jobs in S3", 10, "one job each time")],
    ),
    Row(
        "out-of-memory",
        "Valkey at maxmemory, 5 times",
        _on_site(records.out_of_memory, trials=5),
        lambda o: [*whole(o), *_refused(o)],
    ),
    Row(
        "disk-full",
        "Valkey unable to write its append-only file, 5 times",
        _on_site(records.disk_full, trials=5),
        lambda o: [*whole(o), *_refused(o)],
    ),
    Row(
        "killed-courier",
        "kill -9 of the courier of webhooks before and after its note of a delivery, 20 times each",
        lambda lab: webhooks.delivering(lab, times=20),
        _told,
    ),
    Row(
        "lost-outbox",
        "20 FLUSHALL while events wait to be delivered",
        lambda lab: webhooks.forgetting(lab, times=20),
        _told,
    ),
    Row(
        "everything",
        "300 faults of 11 kinds at random, up to a second apart",
        _everything,
        whole,
    ),
    Row(
        "weak-store",
        "a store without conditional PUT (rclone)",
        store.weak,
        lambda o: [count(o, "detected", 2, "reported by readyz and doctor")],
    ),
]
