"""A real run of a few cards at the load of the peak, beside simulations of its very arrivals.

Knows calibrations, cards and a run's rows. Ignorant of how the run was made (measure.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from benchlib.cell_view import CellView, ShownInCell
from benchlib.queueing.breaches import LEAST_IMAGES
from benchlib.queueing.cards import serve_by_cards
from benchlib.queueing.lanes import Draws
from benchlib.queueing.unet_work import images_of
from benchlib.study.intervals import Interval
from benchlib.study.services import as_floats
from benchlib.study.slo import Slo
from benchlib.study.store import Run
from benchlib.study.wording import counted, in_time_words, number, span, words

if TYPE_CHECKING:
    from benchlib.queueing.estimates import Calibration

SIMULATED = 200
CHANCE = 0.005
"""A run that goes as foretold lies outside of either end with this probability."""
MODEL_ERROR = 0.03
"""A latency that is off by up to this share tells nothing against a simulation."""
SEED = 20_261_128


@dataclass(frozen=True, repr=False)
class PeakRun(ShownInCell):
    """What so many real `replicas` did at `rate` requests/s, and what was foretold of it.

    The run's own percentile that the promise is about (s), and the share of its images in time. The
    `foretold_` intervals hold 99 % of the simulations of its arrivals. `verdict` is "confirmed",
    "not confirmed" or "too short".
    """

    replicas: int
    rate: float
    images: int
    verdict: str
    promised_s: float | None = None
    foretold_s: Interval = None
    in_time: float | None = None
    foretold_in_time: Interval = None

    def __str__(self) -> str:
        cards = counted(self.replicas, "real card")
        made = f"{cards} made {counted(self.images, 'image')} at {number(self.rate)}/s"
        if self.in_time is None or self.foretold_in_time is None:
            return f"{made}: {self.verdict}"
        shares = in_time_words(self.in_time, self.foretold_in_time)
        return f"{made}: {self.verdict} ({shares})"

    def _view(self) -> CellView:
        rows = []
        if self.promised_s is not None:
            rows.append(("measured percentile", words(self.promised_s, None, "s")))
        if self.foretold_s is not None:
            low_s, high_s = self.foretold_s
            rows.append(("foretold (99 %)", f"{span([low_s, high_s])} s"))
        return CellView(str(self), rows)


def judge_peak(calibration: Calibration, run: Run, *, replicas: int, slo: str) -> PeakRun:
    """The run beside simulations of so many cards, with other services of the same kind each time.

    All requests must ask for the work of the calibrating run. Raises ValueError for a promise that
    can't be read.
    """
    # 1) The run's images
    goal = Slo.parse(slo)
    images = images_of(run)
    is_counted = images["phase"].to_numpy() == "measure"
    count = int(is_counted.sum())
    rate = float(run.spec["arrivals"]["rate"])
    if count < LEAST_IMAGES:
        return PeakRun(replicas, rate, count, "too short")
    order = np.argsort(as_floats(images["sent_s"]), kind="stable")
    images = images.iloc[order]
    is_counted = is_counted[order]
    sent_s = as_floats(images["sent_s"])
    held_s = sent_s - as_floats(images["scheduled_s"])
    measured_s = as_floats(images["latency_s"])[is_counted]

    # 2) Its simulations
    random = np.random.default_rng(SEED)
    rows = []
    for number_of_row in range(SIMULATED):
        other = calibration.lane.resampled(random)
        misfit = random.uniform(-calibration.service_share, calibration.service_share)
        lane = replace(other, ratios=(1 + misfit) * other.ratios)
        draws = Draws.of(len(images), SEED + number_of_row)
        served = serve_by_cards(lane, sent_s, draws, cards=replicas)
        stretch = 1 + random.uniform(-calibration.latency_share, calibration.latency_share)
        rows.append((held_s + stretch * served.latency_s)[is_counted])
    simulated_s = np.array(rows)

    # 3) Whether the run lies among them
    promised_s = float(np.quantile(measured_s, goal.q, method="inverted_cdf"))
    of_rows_s = np.quantile(simulated_s, goal.q, axis=1, method="inverted_cdf")
    low_s, high_s = np.quantile(of_rows_s, [CHANCE, 1 - CHANCE])
    in_time = float((measured_s <= goal.latency_s).mean())
    if_longer = (simulated_s <= goal.latency_s / (1 + MODEL_ERROR)).mean(axis=1)
    if_shorter = (simulated_s <= goal.latency_s * (1 + MODEL_ERROR)).mean(axis=1)
    least = float(np.quantile(if_longer, CHANCE))
    most = float(np.quantile(if_shorter, 1 - CHANCE))
    foretold_s = (float(low_s) / (1 + MODEL_ERROR), float(high_s) * (1 + MODEL_ERROR))
    is_foretold = foretold_s[0] <= promised_s <= foretold_s[1] and least <= in_time <= most
    return PeakRun(
        replicas=replicas,
        rate=rate,
        images=count,
        verdict="confirmed" if is_foretold else "not confirmed",
        promised_s=promised_s,
        foretold_s=foretold_s,
        in_time=in_time,
        foretold_in_time=(least, most),
    )
