"""The server's metrics for Prometheus, as /metrics shows them.

Knows the names of the metrics. Ignorant of HTTP: the hand-off counts requests, and the engine has
the other figures. Each app has a registry of its own, because several servers may live in one
process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from benchlib.serving.backend import Backend
from benchlib.serving.engine.faults import OUTCOMES, PARTS, Faults
from benchlib.serving.image_links import ImageLinks
from benchlib.serving.replica_metrics import (
    BATCH_BUCKETS,
    BATCH_SIZE,
    BATCH_SIZE_WORDS,
    ReplicaCollector,
)
from benchlib.telemetry import GIB, cuda_memory_gib, process_memory_gib

REFUSALS = (
    "queue_full", "wait_too_long", "client_share", "too_large", "loading", "stopping",
    "too_many_connections",
)  # fmt: skip
CLIENT_ERRORS = ((401, "missing_api_key"), (401, "invalid_api_key"), (404, "not_found"))
CLOSED_FOR = ("max_connections", "open_files")
CANCELLATIONS = ("deadline", "client_gone")
LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics:
    """The metrics of one app.

    `latency_s` and `images` have the label `route`; `refusals` and `cancellations` have `reason`;
    `client_errors` have `status` and `reason`.
    """

    def __init__(self, engine: Backend[Any], links: ImageLinks) -> None:
        self.registry = registry = CollectorRegistry()

        # 1) What the hand-off counts
        self.latency_s = Histogram(
            "benchlib_request_latency_seconds",
            "From a request's arrival to the start of its answer, for requests that got images",
            ["route"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.images = Counter(
            "benchlib_images_total", "Images made and answered", ["route"], registry=registry
        )
        self.refusals = Counter(
            "benchlib_refusals_total", "Requests that were refused", ["reason"], registry=registry
        )
        self.cancellations = Counter(
            "benchlib_cancellations_total",
            "Requests dropped before their end",
            ["reason"],
            registry=registry,
        )
        self.failures = Counter(
            "benchlib_failures_total",
            "Requests that an error in the server ended",
            registry=registry,
        )
        self.client_errors = Counter(
            "benchlib_client_errors_total",
            "Answers of 400 to 499, by the field or the fault",
            ["status", "reason"],
            registry=registry,
        )
        for status, reason in CLIENT_ERRORS:
            self.client_errors.labels(status, reason)
        self.closed_connections = Counter(
            "benchlib_closed_connections_total",
            "Idle connections that were closed to make room, by the limit",
            ["limit"],
            registry=registry,
        )
        by_reason = (
            (self.refusals, REFUSALS),
            (self.cancellations, CANCELLATIONS),
            (self.closed_connections, CLOSED_FOR),
        )
        for counter, reasons in by_reason:
            for reason in reasons:
                # A rate needs the counter's first value, which is 0.
                counter.labels(reason)

        # 2) What the engine and the links count
        registry.register(StateCollector(engine, links))
        if engine.replicas:
            registry.register(ReplicaCollector(engine))
            return
        batch_size = Histogram(
            BATCH_SIZE, BATCH_SIZE_WORDS, buckets=BATCH_BUCKETS, registry=registry
        )
        engine.on_step = lambda requests, _: batch_size.observe(requests)

    def count_unserved(self, reason: str) -> None:
        """Count a request that gets no image."""
        if reason in CANCELLATIONS:
            self.cancellations.labels(reason).inc()
        elif reason in REFUSALS:
            self.refusals.labels(reason).inc()
        else:
            self.failures.inc()

    def count_client_error(self, status: int, reason: str) -> None:
        """Count an answer of 400 to 499. One that nobody read (499) is a cancellation."""
        if 400 <= status < 499:
            self.client_errors.labels(status, reason).inc()

    def count_connection_error(self, status: int, reason: str) -> None:
        """Count an answer that the app had no part in: a refusal (503), or the client's error."""
        if status == 503:
            self.count_unserved(reason)
        self.count_client_error(status, reason)

    def count_closed(self, limit: str) -> None:
        """Count an idle connection that was closed to make room."""
        self.closed_connections.labels(limit).inc()

    def page(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class StateCollector(Collector):
    """Metrics that are read only when the page is requested."""

    def __init__(self, engine: Backend[Any], links: ImageLinks) -> None:
        self.engine = engine
        self.links = links

    def collect(self) -> Iterator[Metric]:
        engine = self.engine
        yield GaugeMetricFamily(
            "benchlib_queue_length", "Requests that have not begun", engine.waiting
        )
        yield GaugeMetricFamily(
            "benchlib_running_batch", "Requests in the step under way", engine.running
        )
        yield CounterMetricFamily(
            "benchlib_busy_seconds", "Time spent encoding, denoising, decoding", engine.busy_s
        )
        yield CounterMetricFamily(
            "benchlib_adapter_switches",
            "Switches from one LoRA adapter, or none, to another",
            engine.adapter_switches,
        )
        yield from _fault_metrics(engine.faults)
        self.links.drop_old()
        yield GaugeMetricFamily(
            "benchlib_link_bytes", "Image files kept for links", self.links.held_bytes
        )
        memory = GaugeMetricFamily(
            "benchlib_memory_bytes", "Memory held, by the source of the figure", labels=["kind"]
        )
        allocated_gib, reserved_gib = cuda_memory_gib()
        held_gib = {
            "rss": process_memory_gib(),
            "cuda_allocated": allocated_gib,
            "cuda_reserved": reserved_gib,
        }
        for kind, gib in held_gib.items():
            if gib is not None:
                memory.add_metric([kind], gib * GIB)
        yield memory


def _fault_metrics(faults: Faults) -> Iterator[Metric]:
    short = CounterMetricFamily(
        "benchlib_out_of_memory",
        "Calls of the model that ran out of memory, by part of the work",
        labels=["part"],
    )
    for part in PARTS:
        short.add_metric([part], faults.out_of_memory[part])
    yield short
    broken = CounterMetricFamily(
        "benchlib_nonfinite_images",
        "Images of NaN or infinite numbers, by what became of them",
        labels=["outcome"],
    )
    for outcome in OUTCOMES:
        broken.add_metric([outcome], faults.not_finite[outcome])
    yield broken
    yield GaugeMetricFamily(
        "benchlib_failed_calls",
        "Calls of the model that have failed since a step last succeeded",
        faults.failed_calls,
    )
