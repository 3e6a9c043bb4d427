"""Counts what is scheduled, in flight and done in one load run, and makes the run's rows.

Knows the plan, the clock and the measuring window. Ignorant of how a request is sent, of who sends
it, and of where its row is kept.
"""

# gevent's own functions are typed in part:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import itertools
import math
import random
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import gevent
from gevent.event import AsyncResult, Event

from benchlib.load.apis import APIS
from benchlib.load.plan import LoadPlan
from benchlib.load.runner import LoadOutcome
from benchlib.load.workers import Share
from benchlib.rows import Call, make_row

INTERRUPTED = "interrupted"
GAUGE_EVERY_S = 0.05


class GaugeSample(NamedTuple):
    """The requests in flight and this process's CPU seconds, `time_s` seconds from the start."""

    time_s: float
    in_flight: int
    cpu_s: float


class Ledger:
    """The state of one run, or of one worker's share. Moments are seconds on `time.monotonic()`."""

    def __init__(self, plan: LoadPlan, keep_row: Callable[[dict[str, Any]], None]) -> None:
        self.plan = plan
        self.keep_row = keep_row
        self.take(Share())
        self.started = Event()
        self.started_at = ""
        self.started_s = math.nan
        # Why the run is cut, or None where all is done, or the exception that broke the run.
        self.end = AsyncResult()
        self.in_flight: dict[int, Call] = {}
        self.scheduled = 0
        self.finished = 0
        self.max_in_flight_hits = 0
        self.nonfinite_images = 0
        self.gauge: list[GaugeSample] = []
        # The requests in the measuring window:
        self.measured = 0
        self.in_flight_max = 0
        self.last_done_s = 0.0
        self.lags_s: list[float] = []

    def take(self, share: Share) -> None:
        """Before the start: says which of the plan's requests are to be sent here."""
        self.share = share
        self.quota = share.requests(self.plan)  # of the measuring window; None: no number

    def start(self, at_s: float | None = None) -> None:
        """Sets time zero, now or `at_s`, and lets every user send its first request."""
        self.started_at = datetime.now(UTC).isoformat()
        self.started_s = time.monotonic() if at_s is None else at_s
        self.started.set()

    def stop(self, why: str | None) -> None:
        """Ends the run, if it has not ended; `why` goes into the rows of the requests in flight."""
        if not self.end.ready():
            self.end.set(why)

    def fail(self, exception: Exception, **_: Any) -> None:
        """Ends the run with an error that Locust would only count (its `user_error` event)."""
        self.end.set_exception(exception)

    # ---- one request

    def schedule(self, due_s: float, late_s: float = 0.0) -> Call:
        """The next request, due at `due_s`; the caller has checked that `due_s` is not `over`."""
        index = self.share.index_of(self.scheduled)
        self.scheduled += 1
        body = self.plan.request(index)
        call = Call(index, uuid.uuid4().hex, body, due_s, late_s)
        self.in_flight[index] = call
        if self.is_measured(due_s):
            self.measured += 1
            self.in_flight_max = max(self.in_flight_max, len(self.in_flight))
        return call

    def is_measured(self, due_s: float) -> bool:
        """Whether a request due at `due_s` comes after the warm-up."""
        return due_s - self.started_s >= self.plan.warmup_s

    def over(self, due_s: float) -> bool:
        """Whether a request due at `due_s` is one too many, or comes after the measuring window."""
        plan = self.plan
        if self.is_measured(due_s) and self.measured == self.quota:
            return True
        if plan.duration_s is None:
            return False
        return due_s - self.started_s >= plan.warmup_s + plan.duration_s

    def record(
        self, context: dict[str, Any], response: Any, exception: Exception | None, **_: Any
    ) -> None:
        """Keeps the row of a request that ended: Locust's `request` event."""
        headers = response.headers or {}
        timing = headers.get("server-timing", "")
        if not isinstance(timing, str):  # the server sent several such headers
            timing = ", ".join(timing)
        said = APIS[self.plan.api].said(response.content) if exception is None else {}
        row = self.write(
            context["call"],
            http_status=response.status_code or None,
            error=None if exception is None else str(exception),
            server_timing=timing,
            said=said,
        )
        self.finished += 1
        if row["phase"] == "measure":
            self.nonfinite_images += "x-nonfinite" in headers
            self.last_done_s = max(self.last_done_s, row["done_s"])
        if self.quota and self.measured == self.quota and not self.in_flight:
            self.stop(None)

    def write(self, call: Call, **answer: Any) -> dict[str, Any]:
        """Keeps the row of `call`, which is over, and returns the row."""
        row = make_row(call, started_s=self.started_s, warmup_s=self.plan.warmup_s, **answer)
        self.keep_row(row)
        if row["phase"] == "measure":
            sent_s = time.monotonic() if call.sent_s is None else call.sent_s
            self.lags_s.append(call.late_s + sent_s - call.due_s)
        del self.in_flight[call.index]
        return row

    def censor(self, why: str) -> int:
        """Writes a row for each request that is still in flight, and returns their number."""
        censored = list(self.in_flight.values())
        for call in censored:
            call.done_s = None
            self.write(call, error=f"censored: {why}")
        return len(censored)

    # ---- the whole run

    def watch(self) -> None:
        """Counts the requests in flight, for ever, at a random moment in each GAUGE_EVERY_S.

        Moments at a fixed distance could keep step with the arrivals.
        """
        draw = random.Random(self.plan.seed).random
        for cell in itertools.count():
            due_s = self.started_s + (cell + draw()) * GAUGE_EVERY_S
            gevent.sleep(max(0.0, due_s - time.monotonic()))
            sample = GaugeSample(
                time_s=time.monotonic() - self.started_s,
                in_flight=len(self.in_flight),
                cpu_s=time.process_time(),
            )
            self.gauge.append(sample)

    def outcome(self, cut: str | None, wall_s: float, censored: int) -> LoadOutcome:
        """The outcome of the run; `cut` is the reason why it was cut, or None."""
        start_s = self.plan.warmup_s
        cut_s = None if cut is None else wall_s
        end_s = window_end_s(self.plan, self.measured == self.quota, self.last_done_s, cut_s)
        inside = [sample for sample in self.gauge if start_s <= sample.time_s < end_s]
        return LoadOutcome(
            status="interrupted" if cut == INTERRUPTED else "finished",
            started_at=self.started_at,
            started_monotonic_s=self.started_s,
            window_start_s=start_s,
            window_end_s=end_s,
            wall_s=wall_s,
            scheduled=self.scheduled,
            finished=self.finished,
            censored=censored,
            generator_cpu_cores=mean_cores(inside),
            send_lag_p99_s=p99(self.lags_s),
            in_flight_mean=mean_of([sample.in_flight for sample in inside]),
            in_flight_max=self.in_flight_max or None,
            max_in_flight_hits=self.max_in_flight_hits,
            nonfinite_images=self.nonfinite_images,
        )


def window_end_s(
    plan: LoadPlan, are_all_sent: bool, last_done_s: float, cut_s: float | None
) -> float:
    """The end of the measuring window in seconds; `cut_s` is when the run was cut, or None.

    `are_all_sent` says whether the plan's number of requests was reached.
    """
    if plan.duration_s is None or are_all_sent:
        end_s = last_done_s if cut_s is None else cut_s
    else:
        end_s = plan.warmup_s + plan.duration_s
        if cut_s is not None:
            end_s = min(cut_s, end_s)
    return max(plan.warmup_s, end_s)


def mean_cores(samples: list[GaugeSample]) -> float | None:
    """The mean CPU cores between the first and the last sample; None for fewer than two samples."""
    if len(samples) < 2:
        return None
    first = samples[0]
    last = samples[-1]
    cpu_s = last.cpu_s - first.cpu_s
    return cpu_s / (last.time_s - first.time_s)


def mean_of(values: list[int]) -> float | None:
    return sum(values) / len(values) if values else None


def p99(values: list[float]) -> float | None:
    """The 99th percentile by the nearest rank; None for no values."""
    if not values:
        return None
    rank = math.ceil(0.99 * len(values))
    return sorted(values)[rank - 1]
