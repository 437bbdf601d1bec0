"""A memory budget: what can never be decoded is refused with the figures, before it is queued."""

from __future__ import annotations

from pathlib import Path

import httpx

from darkroom_infra.records import transitions
from tests.conftest import Servers, eventually, make_latents

SAFETENSORS = {"Content-Type": "application/x-safetensors"}
BUDGET = 150_000_000


def submit(client: httpx.Client, side: int, **headers: str) -> httpx.Response:
    """Submit latents of so many on each side."""
    return client.post(
        "/v1/jobs?vae=demo",
        content=make_latents(1, 4, side, side),
        headers={**SAFETENSORS, **headers},
    )


def test_what_never_fits_is_refused_with_the_figures(servers: Servers, tmp_path: Path) -> None:
    """Once a worker knows the VAE, the API says what a picture needs and what workers have.

    Before that the worker fails the job, with the same figures.
    """
    with servers.deploy(tmp_path) as deployment:
        deployment.start_api()
        deployment.start_worker(memory_budget=str(BUDGET))
        records = deployment.records()
        with deployment.client() as client:
            unknown = submit(client, 512, Prefer="wait=60").json()
            assert unknown["status"] == "failed"
            assert "needed at least, and there are 150 MB" in unknown["error"]["detail"]
            eventually(lambda: "demo" in records.run(transitions.loaded()).needs)
            eventually(lambda: submit(client, 512).status_code == 413)
            refused = submit(client, 512).json()
            assert refused["errors"][0]["field"] == "latents"
            assert "1 x 4096 x 4096 takes 1" in refused["detail"]
            assert "no worker has more than 150 MB" in refused["detail"]
            assert submit(client, 8, Prefer="wait=60").json()["status"] == "succeeded"
