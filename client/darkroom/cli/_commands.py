"""The client's own commands: their arguments and their help. The work is done elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Ids = Annotated[list[str], typer.Argument(metavar="ID", help="Ids of jobs.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the service's documents as JSON.")]


def submit(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE|DIR",
            help="Latents (.safetensors, .latent, .npy) or pictures; folders of latents.",
        ),
    ],
    vae: Annotated[str, typer.Option(help="A name from `darkroom vaes`.", show_default=False)],
    task: Annotated[
        str | None,
        typer.Option(help="decode: latents to pictures (default); encode: pictures to latents."),
    ] = None,
    format: Annotated[  # noqa: A002 - the option's name
        str | None, typer.Option(help="png, jpeg, webp, safetensors or mp4 (png; for video, mp4).")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the jobs and save what they make.")
    ] = False,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to save in.")
    ] = Path(),
    height: Annotated[int | None, typer.Option(help="In pixels, for packed latents.")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels, for packed latents.")] = None,
    num_frames: Annotated[int | None, typer.Option(help="Frames, for packed video.")] = None,
    scaling: Annotated[
        str | None, typer.Option(help="vae: undo the VAE's own scaling; none: already undone.")
    ] = None,
    scaling_factor: Annotated[
        float | None, typer.Option(help="Divide by this instead of the VAE's own factor.")
    ] = None,
    shift_factor: Annotated[float | None, typer.Option(help="Add this afterwards.")] = None,
    quality: Annotated[int | None, typer.Option(help="Of jpeg and webp, 1 to 100.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second of a video.")] = None,
    priority: Annotated[str | None, typer.Option(help="interactive, normal or batch.")] = None,
    ttl: Annotated[int | None, typer.Option(help="Seconds to keep the results.")] = None,
    metadata: Annotated[
        str | None, typer.Option(help="A JSON object, given back with the job.")
    ] = None,
    callback_url: Annotated[
        str | None, typer.Option(help="Where the service sends an event when a job ends.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Of a folder: go on with an order begun earlier.")
    ] = False,
    json: Json = False,
) -> None:
    """Submit latents, one job for each file; print the jobs' ids, or with --wait save pictures.

    With --task encode the files are pictures (.png, .jpg, .webp), and latents are saved.

    A file FILE.npy becomes FILE.png, or FILE-0.png, FILE-1.png... where it holds several pictures.

    All latents of a folder DIR become batches. What was begun is noted in the output folder: the
    same command again goes on where it stopped, and submits nothing twice.
    """
    from darkroom.cli._submit import Order, submit_files

    options = {
        "task": task,
        "format": format,
        "height": height,
        "width": width,
        "num_frames": num_frames,
        "scaling": scaling,
        "scaling_factor": scaling_factor,
        "shift_factor": shift_factor,
        "quality": quality,
        "fps": fps,
        "priority": priority,
        "ttl": ttl,
        "metadata": metadata,
        "callback_url": callback_url,
    }
    order = Order(tuple(files), vae, options, wait=wait, folder=output, as_json=json)
    if resume or any(file.is_dir() for file in files):
        from darkroom.cli._folder import submit_folders

        submit_folders(order, resume=resume)
    submit_files(order)


def status(ids: Ids, json: Json = False) -> None:
    """Show jobs. The exit status is 1 if one of them failed."""
    from darkroom.cli._jobs import show_jobs

    show_jobs(ids, as_json=json)


def list_(
    status: Annotated[
        str | None,
        typer.Option(help="Only queued, running, succeeded, failed, canceled or expired jobs."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    json: Json = False,
) -> None:
    """List jobs, newest first."""
    from darkroom.cli._jobs import list_jobs

    list_jobs(status, limit, as_json=json)


def cancel(ids: Ids) -> None:
    """Cancel jobs that are not finished."""
    from darkroom.cli._jobs import cancel_jobs

    cancel_jobs(ids)


def delete(ids: Ids) -> None:
    """Delete jobs with their latents and results; unfinished ones are canceled."""
    from darkroom.cli._jobs import delete_jobs

    delete_jobs(ids)


def vaes(json: Json = False) -> None:
    """List the VAEs that the service decodes with."""
    from darkroom.cli._jobs import list_vaes

    list_vaes(as_json=json)


def listen(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = 8765,
    secret: Annotated[
        str | None,
        typer.Option(help="whsec_...; else DARKROOM_WEBHOOK_SECRET.", show_default=False),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="End after so many webhooks.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Receive webhooks on loopback, verify their signatures, and print them."""
    from darkroom.cli._listen import listen as receive

    receive(port, secret, as_json=json, count=count)


COMMANDS = (submit, status, list_, cancel, delete, vaes, listen)
