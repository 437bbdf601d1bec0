"""What came of a scenario."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.conftest import eventually
from tests.faults.invariants import Case, Violation, queues, read_books, violations
from tests.faults.journal import Journal
from tests.faults.site import Site


@dataclass
class Outcome:
    """Counts of what was done and found, times in seconds, and what must not have been."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    guilty: list[str] = field(default_factory=list)
    """Jobs that broke their processes, where there was to be one."""

    def measured(self, name: str, seconds: float | Sequence[float]) -> None:
        """Add times under a name."""
        new = [seconds] if isinstance(seconds, float) else seconds
        self.seconds.setdefault(name, []).extend(new)

    def violate(self, rule: str, found: str, job: str = "-") -> None:
        """Add something that must not have been and that the checker cannot know."""
        self.violations.append(Violation(rule, job, found))

    def add(self, other: Outcome) -> None:
        """Take up what another trial found."""
        self.counts += other.counts
        for name, seconds in other.seconds.items():
            self.measured(name, seconds)
        self.violations += other.violations


def nothing_wrong(outcome: Outcome) -> Outcome:
    """Fail with all that was found."""
    found = "\n".join(str(violation) for violation in outcome.violations[:20])
    assert not outcome.violations, f"{len(outcome.violations)} violations:\n{found}"
    return outcome


def percentile(values: Sequence[float], percent: int) -> float:
    """Give a percentile by the nearest rank; of no values, nan."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, -(-len(ordered) * percent // 100) - 1)]


def median(values: Sequence[float]) -> float:
    """Give the median; of no values, nan."""
    return statistics.median(values) if values else float("nan")


def judge(site: Site, journal: Journal) -> Outcome:
    """Wait until an installation is at rest, and hold everything against everything."""
    eventually(lambda: site.at_rest() and not _messages(site), 120)
    books = read_books(site.ledger, site.valkey.client)
    outcome = Outcome()
    outcome.violations = violations(Case(journal, books, site.max_attempts))
    broken = Counter(violation.rule for violation in outcome.violations)
    seen = Counter(result.status for result in journal.results.values())
    outcome.counts.update(
        {
            "jobs": len(journal.accepted),
            "lost": broken["lost"] + broken["hollow"] + broken["forgotten"] + broken["stuck"],
            "changed": broken["changed"] + broken["untrue"] + broken["unserved"],
            "doubled": broken["doubled"],
            "violations": len(outcome.violations),
            "failed": seen["failed"],
            "refusals": sum(journal.refusals.values()),
            "unacknowledged": len(
                books.accepted & set(books.records) - journal.accepted - site.known
            ),
            "orphans": _orphans(books.outputs, books.manifests),
        }
    )
    site.known |= set(books.records)
    return outcome


def _messages(site: Site) -> int:
    return sum(site.valkey.client.llen(queue) for queue in queues())  # type: ignore[misc]


def _orphans(outputs: dict[str, str], manifests: dict[str, object]) -> int:
    """Count the objects that belong to attempts that died: nobody sees them."""
    named = {
        output.key
        for manifest in manifests.values()
        for output in manifest.outputs  # type: ignore[attr-defined]
    }
    return len(set(outputs) - named)
