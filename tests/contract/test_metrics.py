"""`GET /metrics`, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Servers, eventually, make_latents
from tests.contract.conftest import SAFETENSORS
from tests.faults.proxy import REDIS, Proxy, Trouble

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(client: httpx.Client) -> Samples:
    """Read all samples, by name and labels."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """Find one sample; 0 where nothing was counted so far."""
    return samples.get((name, frozenset(labels.items())), 0.0)


def test_a_job_is_seen(working: httpx.Client) -> None:
    """A job that succeeds shows in what was accepted and ended, and in the times of its steps."""
    before = scrape(working)
    job = working.post(
        "/v1/jobs?vae=demo",
        content=make_latents(1, 4, 8, 8),
        headers={**SAFETENSORS, "Prefer": "wait=60"},
    ).json()
    assert job["status"] == "succeeded"
    after = scrape(working)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown("darkroom_jobs_accepted_total", vae="demo") == 1
    assert grown("darkroom_jobs_ended_total", vae="demo", status="succeeded") == 1
    for stage, milliseconds in job["timings"].items():
        labels = {"stage": stage, "vae": "demo"}
        assert grown("darkroom_job_stage_seconds_count", **labels) == 1
        assert grown("darkroom_job_stage_seconds_bucket", le="+Inf", **labels) == 1
        seconds = grown("darkroom_job_stage_seconds_sum", **labels)
        assert seconds == pytest.approx(milliseconds / 1000, abs=1e-5)
    assert value(after, "darkroom_workers") == 1
    eventually(lambda: value(scrape(working), "darkroom_vae_loaded", vae="demo") == 1)
    assert value(after, "darkroom_redis_up") == 1


def test_the_queue_is_seen(accepting: httpx.Client) -> None:
    """What waits is told by priority and by VAE, as the queue itself tells it."""
    accepting.post(
        "/v1/jobs?vae=demo&priority=batch", content=make_latents(1, 4, 8, 8), headers=SAFETENSORS
    ).raise_for_status()
    queue, samples = accepting.get("/v1/queue").json(), scrape(accepting)
    for priority, count in queue["by_priority"].items():
        assert value(samples, "darkroom_jobs_queued", priority=priority) == count
    assert value(samples, "darkroom_jobs_backlog", vae="demo") == queue["by_vae"]["demo"]
    assert value(samples, "darkroom_oldest_queued_seconds") > 0
    assert value(samples, "darkroom_workers") == 0


def test_answers_are_counted_by_route(accepting: httpx.Client) -> None:
    """Requests are counted by what was asked for, not by ids; inventions share one label."""
    unknown = "01990000-0000-7000-8000-000000000000"
    accepting.get(f"/v1/jobs/{unknown}")
    accepting.request("PROPFIND", "/coffee/42")
    accepting.get("/tea/43")
    samples = scrape(accepting)
    counted = {
        dict(labels)["route"]
        for name, labels in samples
        if name.startswith("darkroom_http_requests_total")
    }
    assert not any(unknown in route or "coffee" in route or "tea" in route for route in counted)
    requests = "darkroom_http_requests_total"
    assert value(samples, requests, method="GET", route="/v1/jobs/{job_id}", status="404") >= 1
    assert value(samples, requests, method="GET", route="other", status="404") >= 1
    assert value(samples, requests, method="other", route="other", status="404") >= 1
    seconds = "darkroom_http_request_duration_seconds_count"
    assert value(samples, seconds, method="GET", route="/v1/jobs/{job_id}") >= 1
    assert value(samples, "darkroom_http_requests_in_progress") == 1  # this one


def test_openmetrics_for_whom_asks(accepting: httpx.Client) -> None:
    """A scraper that accepts OpenMetrics gets it, and it is well-formed."""
    answer = accepting.get(
        "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in openmetrics.text_string_to_metric_families(answer.text)}
    assert {"darkroom_workers", "darkroom_jobs_accepted", "darkroom_http_requests"} <= names


@pytest.mark.parametrize(
    "accept",
    ['application/openmetrics-text; version="1.0.0"', "text/plain;version=abc", "*/*", ""],
)
def test_any_accept_is_answered(accepting: httpx.Client, accept: str) -> None:
    """Whatever a caller accepts, there is an answer."""
    assert accepting.get("/metrics", headers={"Accept": accept}).status_code == 200


def test_a_key_is_needed(servers: Servers, tmp_path: Path) -> None:
    """Where keys are set the figures are for those who have one; Prometheus can be given one."""
    with servers.deploy(tmp_path, api_keys="prometheus:sesame") as deployment:
        deployment.start_api()
        with deployment.client() as client:
            assert client.get("/metrics").status_code == 401
            client.headers["Authorization"] = "Bearer sesame"
            assert value(scrape(client), "darkroom_redis_up") == 1


def test_figures_without_redis(servers: Servers, tmp_path: Path) -> None:
    """While Redis is away the process still tells of itself, and that it is so."""
    port = int(servers.stack.redis_url.removesuffix("/0").rpartition(":")[2])
    line = Proxy(port, REDIS)
    try:
        with servers.deploy(tmp_path, redis_url=f"redis://127.0.0.1:{line.port}/0") as deployment:
            deployment.start_api()
            with deployment.client() as client:
                assert value(scrape(client), "darkroom_redis_up") == 1
                line.disturb(Trouble(away=True))
                samples = scrape(client)
                line.heal()
    finally:
        line.close()
    assert samples["darkroom_redis_up", frozenset()] == 0
    assert value(
        samples, "darkroom_http_requests_total", method="GET", route="/metrics", status="200"
    )
    assert not [name for name, _ in samples if name.startswith("darkroom_jobs")]
