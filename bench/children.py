"""Measurements in processes of their own, so that none finds another's memory."""

from __future__ import annotations

import os
import subprocess
import sys

from darkroom_worker import heap


def last_line(module: str, *arguments: object, as_worker: bool) -> str:
    """Run one of these programs, and give the last line that it prints.

    As a worker it has huge pages; otherwise it runs as anybody's pipeline does.
    """
    command = [sys.executable, "-m", f"bench.{module}", *map(str, arguments)]
    environment = {**os.environ, **(heap.HUGE_PAGES if as_worker else {})}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return done.stdout.splitlines()[-1]
