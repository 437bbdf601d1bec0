"""The benchmark suite: `python -m bench [SECTION…] [--quick] [--write-docs]`, or `make bench`.

Each section measures, prints its table, and writes bench/results/SECTION.json with what it was
measured on. `--write-docs` puts the tables and plots of all results into docs/performance.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any, Protocol

from tools.generated import replace_generated

from . import plots
from .environment import describe, environment

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "performance.md"

GPU = "gpu"
"""A section that `python -m bench.gpu` measures, on a machine that has one."""

SECTIONS = ("decode", "tiny", "video", "encoders", "load", "latency", "throughput", "peers")


class Section(Protocol):
    """A module that measures something."""

    def run(self, *, quick: bool) -> dict[str, Any]:
        """Measure; quickly with little work, to see that it can be."""

    def table(self, result: dict[str, Any]) -> str:
        """Draw the figures as Markdown."""


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="little work, and nothing is written")
    parser.add_argument("--write-docs", action="store_true", help="write docs/performance.md")
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    for name in given.sections or SECTIONS:
        _measure(name, quick=given.quick)
    if given.write_docs and not given.quick:
        write_docs()


def _measure(name: str, *, quick: bool) -> None:
    print(f"## {name}", flush=True)
    section = _section(name)
    machine = environment()
    result = section.run(quick=quick)
    print(section.table(result), flush=True)
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps({"environment": machine, **result}, indent=1)
        (RESULTS / f"{name}.json").write_text(text + "\n")


def write_docs() -> None:
    """Put every result there is into the page, and draw the plots."""
    for name in (*SECTIONS, GPU):
        path = RESULTS / f"{name}.json"
        if path.exists():
            result = json.loads(path.read_text())
            parts = [_section(name).table(result), describe(result["environment"])]
            if name in plots.PLOTS:
                caption, _ = plots.PLOTS[name]
                parts.append(f"![{caption}](plots/{name}.svg)")
            text = "\n\n".join(parts)
            replace_generated(PAGE, name, text)
    plots.draw(RESULTS, PAGE.parent / "plots")


def _section(name: str) -> Section:
    module: Any = importlib.import_module(f"bench.{name}")
    return module  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
