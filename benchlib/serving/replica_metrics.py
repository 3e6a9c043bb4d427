"""The metrics of a fleet's replicas: each has the label `replica`, but for the sizes of batches.

Knows the names of the metrics. The sums over all replicas have the names that a single engine's
metrics have (prometheus.py). Counts of a replica's engine begin anew when it starts again. Ignorant
of how a replica is reached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from benchlib.serving.backend import Backend, ReplicaView
from benchlib.telemetry import GIB

BATCH_SIZE = "benchlib_batch_size"
BATCH_SIZE_WORDS = "Requests in a denoising step"
BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)

Read = Callable[[ReplicaView], float]
GAUGES: tuple[tuple[str, str, Read], ...] = (
    ("benchlib_replica_ready", "Whether the replica can serve", lambda view: view.ready),
    ("benchlib_replica_inside", "Requests that were sent there", lambda view: view.inside),
    (
        "benchlib_replica_queue_length",
        "Requests there that have not begun",
        lambda view: view.status.waiting,
    ),
    (
        "benchlib_replica_running_batch",
        "Requests in its step under way",
        lambda view: view.status.running,
    ),
    (
        "benchlib_replica_failed_calls",
        "Calls of its model that have failed since a step last succeeded",
        lambda view: view.status.failed_calls,
    ),
)
COUNTERS: tuple[tuple[str, str, Read], ...] = (
    ("benchlib_replica_images", "Images that it has made", lambda view: view.images),
    ("benchlib_replica_losses", "How often it was lost", lambda view: view.losses),
    ("benchlib_replica_restarts", "How often it came back", lambda view: view.restarts),
    (
        "benchlib_retries",
        "Images begun anew elsewhere, because this replica was lost",
        lambda view: view.retries,
    ),
    (
        "benchlib_replica_busy_seconds",
        "Time it has spent encoding, denoising, decoding",
        lambda view: view.status.busy_s,
    ),
    (
        "benchlib_replica_out_of_memory",
        "Calls of its model that ran out of memory",
        lambda view: sum(view.status.out_of_memory.values()),
    ),
    (
        "benchlib_replica_nonfinite_images",
        "Its images of NaN or infinite numbers",
        lambda view: sum(view.status.not_finite.values()),
    ),
)


class ReplicaCollector(Collector):
    """Metrics that are read from the replicas only when the page is requested."""

    def __init__(self, fleet: Backend[Any]) -> None:
        self.fleet = fleet

    def collect(self) -> Iterator[Metric]:
        views = self.fleet.replicas
        for name, words, read in GAUGES:
            gauge = GaugeMetricFamily(name, words, labels=["replica"])
            for view in views:
                gauge.add_metric([view.name], read(view))
            yield gauge
        for name, words, read in COUNTERS:
            counter = CounterMetricFamily(name, words, labels=["replica"])
            for view in views:
                counter.add_metric([view.name], read(view))
            yield counter
        memory = GaugeMetricFamily(
            "benchlib_replica_memory_bytes",
            "Memory that a replica's process holds, by the source of the figure",
            labels=["replica", "kind"],
        )
        for view in views:
            for kind, gib in view.status.memory_gib.items():
                memory.add_metric([view.name, kind], gib * GIB)
        yield memory
        yield _batch_sizes(views)


def _batch_sizes(views: Sequence[ReplicaView]) -> Metric:
    """The histogram of all replicas' steps, by the number of requests in each."""
    steps: Counter[int] = Counter()
    for view in views:
        steps.update(view.status.steps_by_batch)
    buckets = []
    for bound in BATCH_BUCKETS:
        within = sum(number for size, number in steps.items() if size <= bound)
        buckets.append((str(float(bound)), float(within)))
    buckets.append(("+Inf", float(steps.total())))
    requests = sum(size * number for size, number in steps.items())
    family = HistogramMetricFamily(BATCH_SIZE, BATCH_SIZE_WORDS)
    family.add_metric([], buckets, requests)
    return family
