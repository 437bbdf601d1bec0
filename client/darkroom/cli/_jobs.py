"""The commands that read and change jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import typer

from darkroom._client import Client
from darkroom._errors import DarkroomError, ServiceUnreachableError
from darkroom._handles import JobHandle
from darkroom._retry import RetryPolicy
from darkroom.cli._exits import ExitStatus, say_error
from darkroom.cli._output import (
    JOB_COLUMNS,
    VAE_COLUMNS,
    job_row,
    print_json,
    print_table,
    vae_row,
)
from darkroom_wire.jobs import Job, Status

IMPATIENT = RetryPolicy(attempts=3, total_seconds=30)
"""Somebody waits at the keyboard: a service that is not there is told soon."""


def show_jobs(ids: Sequence[str], *, as_json: bool) -> None:
    """Show jobs by their ids; exit with 1 if one of them failed."""
    with Client(retry=IMPATIENT) as client:
        found: list[Job] = []
        exit_with = _each(ids, lambda job_id: found.append(client.job(job_id).info))
    _print_jobs(found, as_json=as_json)
    if any(job.status is Status.FAILED for job in found):
        exit_with = max(exit_with, ExitStatus.FAILED)
    raise typer.Exit(exit_with)


def list_jobs(status: str | None, limit: int, *, as_json: bool) -> None:
    """List jobs, newest first."""
    with Client(retry=IMPATIENT) as client:
        _print_jobs([handle.info for handle in client.jobs(status, limit=limit)], as_json=as_json)


def cancel_jobs(ids: Sequence[str]) -> None:
    """Cancel jobs by their ids."""
    with Client(retry=IMPATIENT) as client:

        def cancel(handle: JobHandle) -> None:
            typer.echo(f"{handle.id} {handle.cancel().status}")

        raise typer.Exit(_each(ids, lambda job_id: cancel(client.job(job_id))))


def delete_jobs(ids: Sequence[str]) -> None:
    """Delete jobs by their ids."""
    with Client(retry=IMPATIENT) as client:

        def delete(handle: JobHandle) -> None:
            handle.delete()
            typer.echo(f"{handle.id} deleted")

        raise typer.Exit(_each(ids, lambda job_id: delete(client.job(job_id))))


def list_vaes(*, as_json: bool) -> None:
    """List the catalogue."""
    with Client(retry=IMPATIENT) as client:
        found = client.vaes()
    if as_json:
        print_json(found)
    else:
        print_table(VAE_COLUMNS, [vae_row(vae) for vae in found])


def _each(ids: Sequence[str], act: Callable[[str], None]) -> ExitStatus:
    """Act on each job; what goes wrong with one does not keep the others from it."""
    exit_with = ExitStatus.OK
    for job_id in ids:
        try:
            act(job_id)
        except ServiceUnreachableError:
            raise
        except DarkroomError as error:
            exit_with = max(exit_with, say_error(error, job_id))
    return exit_with


def _print_jobs(jobs: Sequence[Job], *, as_json: bool) -> None:
    if as_json:
        print_json(jobs)
    else:
        print_table(JOB_COLUMNS, [job_row(job) for job in jobs])
