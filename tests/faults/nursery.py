"""Where the programs under test are born: forked from a process that has imported everything.

A worker needs seconds of computing to import torch, and these tests end hundreds of them. So one
process imports it, and each program is a fork of that: a process of its own, which runs the same
command in the same way, and can be killed, stopped and continued like any other.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = [
    "__main__",
    "tests.faults.nursery",
    "celery.apps.worker",
    "celery.concurrency.thread",
    "celery.fixups.django",
    "celery.loaders.app",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.strategy",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.autoencoders.autoencoder_tiny",
    "kombu.transport.redis",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
    "darkroom.cli",
    "darkroom_api.app",
    "darkroom_api.commands",
    "darkroom_api.server",
    "darkroom_infra.commands",
    "darkroom_infra.doctor",
    "darkroom_worker.checks",
    "darkroom_worker.commands",
    "darkroom_worker.program",
    "darkroom_worker.webhooks.program",
]

POISON = 666.0
"""Latents that begin with this value kill the process that decodes them."""

STICKY = 777.0
"""Latents that begin with this value never come out of the decoder."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)

_lock = threading.Lock()
"""Starting a process looks after all others, and two looks at once spoil an exit status."""


def spawn(
    arguments: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
) -> BaseProcess:
    """Start `darkroom ARGUMENTS…` with these settings and no others."""
    process = _context.Process(
        target=_live,
        args=(tuple(arguments), dict(environment), str(folder), str(log)),
        daemon=True,
    )
    with _lock:
        process.start()
    return process


def await_end(process: BaseProcess) -> int:
    """Wait until a process has ended, and return its status: negative for a signal."""
    connection.wait([process.sentinel])
    with _lock:
        assert process.exitcode is not None
        return process.exitcode


def _live(arguments: Sequence[str], environment: Mapping[str, str], folder: str, log: str) -> None:
    # It would keep the nursery alive when the run has ended.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    die_with_parent()
    for name in [name for name in os.environ if name.startswith("DARKROOM_")]:
        del os.environ[name]
    os.environ.update(environment)
    os.chdir(folder)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["darkroom", *arguments]
    if "worker" in arguments:
        _prepare_worker()
    from darkroom.cli import main

    main()


def die_with_parent() -> None:
    """Ask Linux to end this process when the run is killed outright."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _prepare_worker() -> None:
    """Share the cores with other workers; die or hang over some latents, as by a driver's fault."""
    import torch

    from darkroom_worker import decoding

    torch.set_num_threads(1)
    healthy = decoding.decode

    def decode(vae: Any, latents: Any, *rest: Any) -> Any:
        first = set(latents.flatten(1)[:, 0].tolist())
        if POISON in first:
            os.kill(os.getpid(), signal.SIGKILL)
        if STICKY in first:
            threading.Event().wait()
        return healthy(vae, latents, *rest)

    decoding.decode = decode
