"""What came home from the workers of a run: their rows, kept at once, and the outcome of the whole.

Knows which figures of the workers add up. Ignorant of messages, processes and clocks: all times are
in seconds of the master's clock from the run's start.
"""

from __future__ import annotations

from array import array
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchlib.load.clocks import Alignment
from benchlib.load.ledger import INTERRUPTED, GaugeSample, mean_cores, mean_of, p99, window_end_s
from benchlib.load.plan import LoadPlan
from benchlib.load.rows_file import RowsFile
from benchlib.load.runner import LoadOutcome

Moments: TypeAlias = NDArray[np.float64]


class WorkerTally:
    """What one worker has sent home. It takes some 30 bytes a row in memory."""

    def __init__(self) -> None:
        self.name = ""
        self.rows = 0
        self.due_s = array("d")
        self.done_s = array("d")  # NaN for a request that never ended
        self.lags_s = array("d")  # of the measured requests
        self.gauge: list[GaugeSample] = []
        self.max_in_flight_hits = 0
        self.nonfinite_images = 0
        self.alignment: Alignment | None = None
        self.lost: str | None = None

    def add(self, batch: dict[str, Any]) -> None:
        """Adds the figures of a batch (see `Outbox.batch`); its lines are kept by now."""
        self.due_s.frombytes(batch["due_s"])
        self.done_s.frombytes(batch["done_s"])
        self.lags_s.frombytes(batch["lags_s"])
        self.gauge += [GaugeSample(*sample) for sample in batch["gauge"]]
        self.max_in_flight_hits = batch["max_in_flight_hits"]
        self.nonfinite_images = batch["nonfinite_images"]
        self.rows = len(self.due_s)

    def figures(self, start_s: float, end_s: float) -> dict[str, Any]:
        """What the record says of this worker."""
        clock: dict[str, float | None] = dict.fromkeys(
            ("clock_offset_s", "clock_drift_s", "clock_error_s")
        )
        if self.alignment is not None:
            clock["clock_offset_s"] = self.alignment.used_offset_s
            clock["clock_drift_s"] = self.alignment.drift_s
            clock["clock_error_s"] = self.alignment.error_s
        inside = [sample for sample in self.gauge if start_s <= sample.time_s < end_s]
        return {
            "worker": self.name,
            "requests": self.rows,
            "cpu_cores": mean_cores(inside),
            "in_flight_mean": mean_of([sample.in_flight for sample in inside]),
            "send_lag_p99_s": p99(list(self.lags_s)),
            **clock,
            "lost": self.lost,
        }


class Collected:
    """The rows of all workers of a run, and the master's own use of the CPU."""

    def __init__(self, plan: LoadPlan, rows_path: str) -> None:
        self.plan = plan
        self.tallies: list[WorkerTally] = []
        self.own_gauge: list[GaugeSample] = []
        self._file = RowsFile(rows_path)

    def enrol(self, tally: WorkerTally) -> None:
        """Counts the tally of the next worker; the first one's name is "0"."""
        tally.name = str(len(self.tallies))
        self.tallies.append(tally)

    def add(self, tally: WorkerTally, batch: dict[str, Any]) -> None:
        """Keeps a batch of rows with one `write`. Raises OSError where the disk is full."""
        if batch["lines"]:
            self._file.write(batch["lines"])
        tally.add(batch)

    def outcome(
        self, cut: str | None, *, started_at: str, started_s: float, wall_s: float
    ) -> LoadOutcome:
        """The outcome of the whole run; `cut` is the reason why it was cut, or None."""
        # 1) The rows of all workers, and the measuring window
        plan = self.plan
        due_s = np.concatenate([tally.due_s for tally in self.tallies])
        done_s = np.concatenate([tally.done_s for tally in self.tallies])
        lags_s = np.concatenate([tally.lags_s for tally in self.tallies])
        is_measured = due_s >= plan.warmup_s
        ended_s = done_s[is_measured & ~np.isnan(done_s)]
        last_done_s = float(ended_s.max()) if len(ended_s) else 0.0
        are_all_sent = int(is_measured.sum()) == plan.requests
        cut_s = None if cut is None else wall_s
        start_s = plan.warmup_s
        end_s = window_end_s(plan, are_all_sent, last_done_s, cut_s)

        # 2) The figures of each worker, of which most add up. Each process can take one core, so
        # the busiest one counts.
        workers = self._describe(start_s, end_s)
        each = workers["each"]
        cores = [workers["master_cpu_cores"], *_known(each, "cpu_cores")]
        in_flight = _known(each, "in_flight_mean")
        censored = int(np.isnan(done_s).sum())
        return LoadOutcome(
            status="interrupted" if cut == INTERRUPTED else "finished",
            started_at=started_at,
            started_monotonic_s=started_s,
            window_start_s=start_s,
            window_end_s=end_s,
            wall_s=wall_s,
            scheduled=len(due_s),
            finished=len(due_s) - censored,
            censored=censored,
            generator_cpu_cores=max((one for one in cores if one is not None), default=None),
            send_lag_p99_s=p99(lags_s.tolist()),
            in_flight_mean=sum(in_flight) if in_flight else None,
            in_flight_max=most_in_flight(due_s, done_s, start_s),
            max_in_flight_hits=sum(tally.max_in_flight_hits for tally in self.tallies),
            nonfinite_images=sum(tally.nonfinite_images for tally in self.tallies),
            workers=workers,
        )

    def _describe(self, start_s: float, end_s: float) -> dict[str, Any]:
        """What the record says of the workers; the measuring window is from `start_s` to `end_s`."""
        each = [tally.figures(start_s, end_s) for tally in self.tallies]
        own = [sample for sample in self.own_gauge if start_s <= sample.time_s < end_s]
        return {
            "lost": _known(each, "lost"),
            "clock_error_s": max(_known(each, "clock_error_s"), default=None),
            "master_cpu_cores": mean_cores(own),
            "each": each,
        }


def _known(each: list[dict[str, Any]], name: str) -> list[Any]:
    return [figures[name] for figures in each if figures[name] is not None]


def most_in_flight(due_s: Moments, done_s: Moments, from_s: float) -> int | None:
    """The most requests that were due and not done when one was due, `from_s` or later.

    NaN in `done_s` stands for a request that never ended. None if no request was due so late.
    """
    rising_s = np.sort(due_s)
    until_s = np.sort(np.where(np.isnan(done_s), np.inf, done_s))
    come = np.searchsorted(rising_s, rising_s, side="right")
    gone = np.searchsorted(until_s, rising_s, side="right")
    counted = (come - gone)[rising_s >= from_s]
    return int(counted.max()) if len(counted) else None
