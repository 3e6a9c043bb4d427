"""Foretells the latency of each policy at each throughput, and how many images/s keep a promise.

    calibrations = calibrate_policies([closed, *rush.values(), *runs])
    frontier = foretell_frontier(calibrations, slo="p95 < 2 s")

Knows calibrations, by any names: policies, or recipes. Ignorant of how they are fitted and drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

from benchlib.questions.batching.calibrated import usable_and_refused
from benchlib.study.intervals import Interval
from benchlib.study.slo import Slo, promise_for

if TYPE_CHECKING:
    from benchlib.queueing.estimates import Calibration

SHARES = (0.2, 0.5, 0.7, 0.82, 0.92)
"""The rates of a line, as shares of the highest throughput that is sure."""
COLUMNS = ["name", "images_per_s", "promised_s", "promised_s_interval"]


@dataclass(frozen=True)
class Frontier:
    """The latency at each throughput, for each policy, in the long run.

    - `slo`: the promise, such as "p95 < 2 s"; None where nothing is foretold.
    - `rows`: `name`, `images_per_s`, and `promised_s`, the latency of the promise's percentile in
      seconds, with its `promised_s_interval`.
    - `capacities`: the highest images/s that keep the promise, and their interval, by name.
    - `images`: how many images were measured, by name.
    - `refusals`: why nothing is foretold, by name.
    """

    slo: str | None
    rows: pd.DataFrame
    capacities: Mapping[str, tuple[float | None, Interval]] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
    refusals: Mapping[str, str] = field(default_factory=dict)


def foretell_frontier(calibrations: Mapping[str, Calibration], slo: str | None = None) -> Frontier:
    """Foretells the latency of each of `calibrations` up to its own highest throughput.

    Without `slo`, the promise is what suits the shortest time of an image alone (promise_for).
    Raises ValueError for a promise that can't be read.
    """
    # 1) What can be foretold, and the promise
    usable, refusals = usable_and_refused(calibrations)
    if slo is not None:
        Slo.parse(slo)
    if not usable:
        no_rows = pd.DataFrame([], columns=COLUMNS)
        return Frontier(slo, no_rows, refusals=refusals)
    if slo is None:
        alone_s = min(calibration.service_s for calibration in usable.values())
        slo = promise_for(alone_s)

    # 2) A line for each, with a point where it meets the promise
    frames = []
    capacities = {}
    images = {}
    for name, calibration in usable.items():
        capacity = calibration.capacity(slo)
        capacities[name] = (capacity.rate, capacity.interval)
        images[name] = calibration.images
        frames.append(_line(name, calibration, slo, capacity.rate))
    rows = pd.concat(frames, ignore_index=True)
    return Frontier(slo, rows, capacities, images, refusals)


def _line(name: str, calibration: Calibration, slo: str, capacity: float | None) -> pd.DataFrame:
    """Returns the rows of one line, by rising throughput."""
    sure = calibration.most_images_per_s / (1 + calibration.service_share)
    rates = [share * sure for share in SHARES]
    if capacity is not None:
        rates.append(capacity)
    curve = calibration.curve(sorted(rates), slo)
    kept_up = curve[curve["stable"] & curve["promised_s"].notna()]
    # A server that keeps up makes as many images a second as are asked for.
    named = kept_up.rename(columns={"rate": "images_per_s"}).assign(name=name)
    return named[COLUMNS]
