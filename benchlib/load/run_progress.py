"""How far a run is, by the rows that are in its file so far.

Standard library only. Ignorant of who writes the rows, and of who is shown the progress.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from typing import IO, Any

from benchlib.load.plan import LoadPlan


@dataclass(frozen=True)
class Progress:
    """How far a run is. A value is None while it is not known.

    `elapsed_s` counts from the run's start. `done` requests have ended, warm-up included; `errors`
    of them failed. The other values are of requests after the warm-up. `median_latency_s` is of the
    images. `p95_latency_s` is of all requests, from 20 on; a failure counts as longer than any
    image. `time_left_s` is the time until the last request is scheduled.
    """

    elapsed_s: float
    done: int
    errors: int
    images_per_s: float | None
    median_latency_s: float | None
    p95_latency_s: float | None
    time_left_s: float | None


class ProgressReader:
    """Reads the rows that the child appends, as far as they are whole, for the progress."""

    def __init__(self, plan: LoadPlan, rows: IO[bytes]) -> None:
        self.plan = plan
        self.rows = rows
        self.unread = b""
        self.done = 0
        self.errors = 0
        self.images = 0
        self.measured = 0
        self.latencies_s: list[float] = []  # of the measured images, sorted

    def progress(self, elapsed_s: float) -> Progress:
        """The progress `elapsed_s` seconds after the start, by all rows so far."""
        *lines, self.unread = (self.unread + self.rows.read()).split(b"\n")
        for line in lines:
            self._count(json.loads(line))
        # Sorting an almost sorted list is quick, which matters if this process is the server's too.
        self.latencies_s.sort()
        measuring_s = elapsed_s - self.plan.warmup_s
        return Progress(
            elapsed_s=elapsed_s,
            done=self.done,
            errors=self.errors,
            images_per_s=self.images / measuring_s if measuring_s > 0 else None,
            median_latency_s=statistics.median(self.latencies_s) if self.latencies_s else None,
            p95_latency_s=self._p95_s(),
            time_left_s=self._time_left_s(elapsed_s),
        )

    def _count(self, row: dict[str, Any]) -> None:
        if row["done_s"] is not None:
            self.done += 1
            if row["error"] is not None:
                self.errors += 1
            elif row["done_s"] >= self.plan.warmup_s:
                self.images += 1
        if row["phase"] == "measure":
            self.measured += 1
            if row["error"] is None:
                self.latencies_s.append(row["latency_s"])

    def _p95_s(self) -> float | None:
        """The 95th percentile of all measured requests; None below 20, or if it is a failure's."""
        rank = math.ceil(95 * self.measured / 100)
        if self.measured < 20 or rank > len(self.latencies_s):
            return None
        return self.latencies_s[rank - 1]

    def _time_left_s(self, elapsed_s: float) -> float | None:
        plan = self.plan
        measuring_s = elapsed_s - plan.warmup_s
        left_s = []
        if plan.max_s is not None:
            left_s.append(plan.max_s - elapsed_s)
        if plan.duration_s is not None:
            left_s.append(plan.duration_s - measuring_s)
        if plan.requests is not None and self.measured and measuring_s > 0:
            left_s.append((plan.requests - self.measured) * measuring_s / self.measured)
        elif plan.duration_s is None:
            return None
        return max(0.0, min(left_s))
