"""The fault suite at full size: `make faults`. Writes JSON, and the table in docs/reliability.md.

python -m tests.faults.run [NAME…] [--json FILE] [--write-docs]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from darkroom_infra.embedded.stack import prepare
from darkroom_infra.embedded.supervisor import Supervisor
from darkroom_infra.settings import Settings
from tests.faults.outcome import Outcome
from tests.faults.site import Lab, Store
from tests.faults.table import ROWS, Figure, Row
from tools.generated import replace_generated

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "faults.json"
PAGE = ROOT / "docs" / "reliability.md"
SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the table, or the rows that are named; 1 if something was found that must not be."""
    parser = argparse.ArgumentParser(description="The fault suite at full size.")
    names = [row.name for row in ROWS]
    parser.add_argument("rows", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the results go")
    parser.add_argument("--write-docs", action="store_true", help="write docs/reliability.md")
    options = parser.parse_args(arguments)
    if unknown := set(options.rows) - set(names):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    results = []
    with laboratory() as lab:
        for row in ROWS:
            if options.rows and row.name not in options.rows:
                continue
            results.append(run(lab, row))
            write(options.json, results)
    if options.write_docs:
        replace_generated(PAGE, "faults", page_of(options.json))
    return int(any(result["violations"] or result["error"] for result in results))


@contextmanager
def laboratory() -> Iterator[Lab]:
    """Start the store, and keep the logs where something went wrong."""
    folder = Path(tempfile.mkdtemp(prefix="darkroom-faults-"))
    stack = prepare(folder / "store", None, 0, Settings())
    supervisor = Supervisor(folder)
    try:
        supervisor.start(stack.seaweedfs())
        keys = stack.credentials
        yield Lab(Store(stack.s3_url, keys.access_key_id, keys.secret_access_key), folder)
    finally:
        supervisor.stop()
        say(f"logs are in {folder}")
        shutil.rmtree(folder / "store", ignore_errors=True)


def run(lab: Lab, row: Row) -> dict[str, Any]:
    """Run one row; what goes wrong in it ends only the row."""
    say(f"{datetime.now(UTC):%H:%M:%S} {row.name}: {row.title}")
    since = time.monotonic()
    outcome, error, figures = Outcome(), "", list[Figure]()
    try:
        outcome = row.run(lab)
        figures = row.read(outcome)
    except (Exception, pytest.fail.Exception) as reason:  # noqa: BLE001 - the table goes on
        error = f"{type(reason).__name__}: {reason}"[:2000]
        traceback.print_exc()
    for figure in figures:
        say(f"    {'ok  ' if figure.met else 'MISS'} {figure.goal}: {figure.found}")
    for violation in outcome.violations[:SHOWN]:
        say(f"    {violation}")
    return {
        "name": row.name,
        "title": row.title,
        "took_seconds": round(time.monotonic() - since, 1),
        "error": error,
        "figures": [asdict(figure) for figure in figures],
        "counts": dict(outcome.counts),
        "seconds": {name: sorted(round(t, 3) for t in ts) for name, ts in outcome.seconds.items()},
        "violations": [str(violation) for violation in outcome.violations[:1000]],
    }


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def write(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Put the results into the file; rows that were not run stay as they are there."""
    known = {row["name"]: row for row in _read(path)["rows"]}
    for result in results:
        known[result["name"]] = {**result, "at": f"{datetime.now(UTC):%Y-%m-%d}"}
    ordered = [known[row.name] for row in ROWS if row.name in known]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "rows": ordered}, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {"rows": []}
    return found


def page_of(path: Path) -> str:
    """Make the table of the page from a file of results."""
    results = _read(path)
    dates = sorted({row["at"] for row in results["rows"]})
    lines = [
        f"Measured on {' and '.join(dict.fromkeys((dates[0], dates[-1])))}: {results['machine']}.",
        "",
        "| what is done | goal | found | |",
        "|---|---|---|---|",
    ]
    for row in results["rows"]:
        title = row["title"]
        if row["error"]:
            lines.append(f"| {title} | | did not come to its end | **no** |")
        for figure in row["figures"]:
            met = "yes" if figure["met"] else "**no**"
            lines.append(f"| {title} | {figure['goal']} | {figure['found']} | {met} |")
            title = ""
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
