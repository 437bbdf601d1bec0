"""The health of a worker's container: its program runs, and is connected to Redis.

A worker listens on no port. It connects to Redis once torch, the catalogue and the settings are
loaded, and a worker without a connection can neither take jobs nor renew their leases. Looking for
the connection costs some hundredths of a second; `darkroom doctor` would import torch each time,
and write to S3. Whether a decode makes progress is not asked here: the jobs' leases see to that.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import PurePath
from urllib.parse import urlsplit

import psutil

DEFAULT_URL = "redis://127.0.0.1:6379/0"
DEFAULT_PORT = 6379


def main() -> int:
    """Answer as a health check does: 0 is healthy, 1 is not."""
    port = urlsplit(os.environ.get("DARKROOM_REDIS_URL") or DEFAULT_URL).port or DEFAULT_PORT
    workers = [process for process in psutil.process_iter() if is_worker(process)]
    if not workers:
        sys.stdout.write("no worker runs here\n")
        return 1
    if not any(is_connected(process, port) for process in workers):
        sys.stdout.write(f"the worker has no connection to Redis (port {port})\n")
        return 1
    return 0


def is_worker(process: psutil.Process) -> bool:
    """Tell whether a process is `python …/darkroom worker`, however it was started."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    names = [PurePath(argument).name for argument in command]
    pairs = itertools.pairwise(names)
    return bool(names) and names[0].startswith("python") and ("darkroom", "worker") in pairs


def is_connected(process: psutil.Process, port: int) -> bool:
    """Tell whether a process has a connection to a port that stands."""
    try:
        connections = process.net_connections(kind="tcp")
    except psutil.Error:
        return False
    return any(
        connection.status == psutil.CONN_ESTABLISHED
        and connection.raddr
        and connection.raddr.port == port
        for connection in connections
    )


if __name__ == "__main__":
    sys.exit(main())
