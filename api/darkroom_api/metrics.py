"""`GET /metrics`: what Prometheus reads.

Three kinds of figures: of this process and its HTTP answers; of the installation now, as the
records say; and what was counted since the records began (`darkroom_infra.records.tallies`). The
latter two are the same from every API process: take their maximum, not their sum.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    exposition,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from darkroom_infra.records.tallies import BOUNDS, Durations, Tallies
from darkroom_infra.records.transitions import Presence, Statistics

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
OTHER = "other"
"""The label of methods and paths that there are not: what callers invent must not become labels."""


class HttpMetrics:
    """The figures of one API process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._requests = Counter(
            "darkroom_http_requests",
            "HTTP requests that were answered.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "darkroom_http_request_duration_seconds",
            "Time until an answer began; calls with wait=N wait as they were asked to.",
            ("method", "route"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._in_progress = Gauge(
            "darkroom_http_requests_in_progress",
            "HTTP requests that are being answered, event streams and waiting calls among them.",
            registry=self.registry,
        )

    def measured(self, app: ASGIApp) -> ASGIApp:
        """Wrap an application so that its answers are counted and timed."""

        async def measure(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            status, began = 500, None
            start = time.perf_counter()

            async def noting_send(message: Message) -> None:
                nonlocal status, began
                if message["type"] == "http.response.start":
                    status, began = message["status"], time.perf_counter()
                await send(message)

            self._in_progress.inc()
            try:
                await app(scope, receive, noting_send)
            finally:
                self._in_progress.dec()
                method = scope["method"] if scope["method"] in METHODS else OTHER
                route = getattr(scope.get("route"), "path", OTHER)
                self._requests.labels(method, route, status).inc()
                seconds = (began or time.perf_counter()) - start
                self._seconds.labels(method, route).observe(seconds)

        return measure


class Exposition(Collector):
    """Everything that one scrape tells; what the records say is None while Redis is away."""

    def __init__(
        self, http: HttpMetrics, records: tuple[Statistics, Presence, Tallies] | None
    ) -> None:
        self._http = http
        self._records = records

    def collect(self) -> Iterator[Metric]:
        """Give the metrics, as prometheus_client's encoders ask for them."""
        yield from self._http.registry.collect()
        yield GaugeMetricFamily(
            "darkroom_redis_up", "Whether the job records can be read.", float(bool(self._records))
        )
        if self._records is not None:
            statistics, presence, tallies = self._records
            yield from _now(statistics, presence, tallies.events_waiting)
            yield from _since_the_records_began(tallies)

    def encode(self, accept: str) -> tuple[bytes, str]:
        """Write it in the format that the caller accepts, and name the content type."""
        try:
            encoder, content_type = exposition.choose_encoder(accept)
        except TypeError:  # it compares versions that are no numbers, quoted ones too, with numbers
            encoder, content_type = exposition.choose_encoder("")
        return encoder(self), content_type


def _now(statistics: Statistics, presence: Presence, events_waiting: int) -> Iterator[Metric]:
    yield _labelled(
        GaugeMetricFamily("darkroom_jobs_queued", "Jobs that wait.", labels=("priority",)),
        {priority.value: count for priority, count in statistics.depth.items()},
    )
    yield _labelled(
        GaugeMetricFamily("darkroom_jobs_backlog", "Jobs that wait, by VAE.", labels=("vae",)),
        statistics.backlog,
    )
    yield _labelled(
        GaugeMetricFamily("darkroom_vae_loaded", "VAEs that a worker holds.", labels=("vae",)),
        dict.fromkeys(presence.loaded, 1),
    )
    for name, help_text, value in (
        ("darkroom_jobs_running", "Jobs that workers have in hand.", statistics.running),
        (
            "darkroom_oldest_queued_seconds",
            "How long the oldest of the jobs that wait has waited; 0 where none does.",
            (statistics.oldest_ms or 0) / 1000,
        ),
        ("darkroom_workers", "Workers that live.", statistics.workers),
        ("darkroom_webhook_events_waiting", "Events that are to be sent.", events_waiting),
    ):
        yield GaugeMetricFamily(name, help_text, value)


def _since_the_records_began(tallies: Tallies) -> Iterator[Metric]:
    for name, help_text, labels, counts in (
        ("darkroom_jobs_accepted", "Jobs that were accepted.", ("vae",), tallies.accepted),
        (
            "darkroom_jobs_ended",
            "Jobs that ended; expired: deleted before their end.",
            ("status", "vae"),
            tallies.ended,
        ),
        (
            "darkroom_jobs_requeued",
            "Jobs taken from workers that had died.",
            ("vae",),
            tallies.requeued,
        ),
        (
            "darkroom_webhook_attempts",
            "Attempts at sending webhook events; pending: another follows.",
            ("outcome",),
            tallies.sends,
        ),
    ):
        yield _labelled(CounterMetricFamily(name, help_text, labels=labels), counts)
    stages = HistogramMetricFamily(
        "darkroom_job_stage_seconds",
        "How long the steps of the jobs that succeeded took, as in their timings.",
        labels=("stage", "vae"),
    )
    for stage_labels, durations in sorted(tallies.stages.items()):
        stages.add_metric(stage_labels, _buckets(durations), durations.seconds)
    yield stages


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    """Sum the buckets up: each of Prometheus's has those below it."""
    bounds = [*(str(float(bound)) for bound in BOUNDS), "+Inf"]
    return list(zip(bounds, accumulate(durations.buckets), strict=True))


def _labelled(
    family: GaugeMetricFamily | CounterMetricFamily,
    values: Mapping[str, int] | Mapping[tuple[str, ...], int],
) -> Metric:
    for labels, value in sorted(values.items()):
        family.add_metric((labels,) if isinstance(labels, str) else labels, value)
    return family
