"""What goes to stdout: tables of plain text, or JSON and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence

import typer
from pydantic import BaseModel

from darkroom_wire.jobs import Job, Status, VaeInfo

JOB_COLUMNS = ("ID", "STATUS", "VAE", "FORMAT", "CREATED", "DETAIL")
VAE_COLUMNS = ("NAME", "FAMILY", "CHANNELS", "FACTOR", "DTYPE", "LOADED", "SOURCE")


def print_json(documents: Sequence[BaseModel]) -> None:
    """Print documents as one JSON array, as the service gives them."""
    typer.echo(json.dumps([item.model_dump(mode="json") for item in documents], indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns, in a pipe as in a terminal, so that ids stay whole."""
    lines = [columns, *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def job_row(job: Job) -> tuple[str, ...]:
    """Show a job in one line."""
    created = job.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return (job.id, job.status, job.vae, job.format, created, _detail(job))


def vae_row(vae: VaeInfo) -> tuple[str, ...]:
    """Show a VAE in one line."""
    frames = f" x{vae.temporal_factor} frames" if (vae.temporal_factor or 1) > 1 else ""
    factor = f"{vae.spatial_factor or ''}{frames}"
    loaded = "yes" if vae.loaded else "no"
    channels = str(vae.latent_channels or "")
    return (vae.name, vae.family, channels, factor, vae.dtype or "", loaded, vae.source)


def _detail(job: Job) -> str:
    if job.error is not None:
        return " ".join(job.error.detail.split())
    if job.status is Status.QUEUED:
        return "" if job.queue_position is None else f"position {job.queue_position}"
    if job.status is Status.RUNNING:
        return f"{job.progress:.0%}"
    count = len(job.outputs)
    return f"{count} output{'s' * (count > 1)}" if count else ""
