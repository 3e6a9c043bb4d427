"""Foretells what each policy gains over serial, from the services that its runs measured under load.

    calibrations = calibrate_policies([closed, *rush.values(), *runs])
    foretold = foretell_gains(calibrations, serial_images_per_s=0.5, rates=[0.4])

Runs of seconds show too few queues to compare latencies. Their services are enough to simulate long
queues. Knows calibrations and their predictions. Ignorant of how a lane is fitted, and of what the
answer makes of the gains (judge.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from benchlib.printing import print_line
from benchlib.questions.batching.judge import FORETOLD_COLUMNS, ForetoldGains, verdict_of
from benchlib.study.services import services
from benchlib.study.store import Run

if TYPE_CHECKING:
    import pandas as pd

    from benchlib.queueing.estimates import Calibration

LOADS = (0.1, 0.3, 0.5, 0.65, 0.8, 0.9)
"""Shares of serial's throughput at which gains are foretold."""
SERIAL = "serial"
_LATENCIES = {"latency_mean_s": "mean_s", "latency_p95_s": "p95_s"}
"""Each figure of judge.LATENCIES, and its column in a calibration's curve."""

Ends = tuple[float, float]


class Latency(NamedTuple):
    """A latency that was foretold, and the ends of its interval of 95 %, in seconds."""

    value: float
    low: float
    high: float

    @property
    def log_below(self) -> float:
        """How far the low end is, as a logarithm; infinite from 0."""
        return math.log(_divided(self.value, self.low))

    @property
    def log_above(self) -> float:
        """How far the high end is, as a logarithm."""
        return math.log(self.high / self.value)


def calibrate_policies(runs: Iterable[Run]) -> dict[str, Calibration]:
    """Prints and returns a calibration for each policy, by all of its runs together.

    Any arrivals will do, closed loops too: services count, not latencies. A policy without an image
    after warm-up is left out. Raises ValueError where the runs of a policy differ in server or workload.
    """
    from benchlib.queueing.estimates import calibrate

    by_policy: dict[str, list[Run]] = {}
    for run in runs:
        images = services(run.requests)
        if (images["phase"] == "measure").any():
            by_policy.setdefault(run.spec["target"]["batching"], []).append(run)
    calibrations = {}
    for name, own in by_policy.items():
        calibrations[name] = calibrate(own)
        print_line(f"{name}: {calibrations[name]}")
    return calibrations


def usable_and_refused(
    calibrations: Mapping[str, Calibration],
) -> tuple[dict[str, Calibration], dict[str, str]]:
    """Returns the calibrations that foretell something, and why the others don't, by their names."""
    refusals = {}
    usable = {}
    for name, calibration in calibrations.items():
        if calibration.refusal is None:
            usable[name] = calibration
        else:
            refusals[name] = calibration.refusal
    return usable, refusals


def foretell_gains(
    calibrations: Mapping[str, Calibration],
    *,
    serial_images_per_s: float,
    rates: Iterable[float] = (),
) -> ForetoldGains:
    """Foretells the latency of each policy in the long run, as a multiple of serial's.

    The rates are LOADS of `serial_images_per_s`, and `rates` (requests/s) besides. A policy whose
    calibration is refused has no rows, and where serial's is refused, nobody has.
    """
    import pandas as pd

    # 1) What can be foretold
    usable, refusals = usable_and_refused(calibrations)
    serial = usable.pop(SERIAL, None)
    if serial is None:
        return ForetoldGains(pd.DataFrame([], columns=FORETOLD_COLUMNS), refusals)

    # 2) The latency of each policy at each rate, beside serial's
    of_loads = [load * serial_images_per_s for load in LOADS]
    all_rates = sorted({*of_loads, *rates})
    serial_curve = serial.curve(all_rates)
    rows = []
    for name, calibration in sorted(usable.items()):
        curve = calibration.curve(all_rates)
        images = serial.images + calibration.images
        for figure, column in _LATENCIES.items():
            for rate, ratio, interval in _ratios(curve, serial_curve, column):
                verdict = verdict_of(interval)
                row = [rate, name, figure, ratio, interval, verdict, images]
                rows.append(row)
    return ForetoldGains(pd.DataFrame(rows, columns=FORETOLD_COLUMNS), refusals)


def _ratios(
    policy: pd.DataFrame, serial: pd.DataFrame, column: str
) -> list[tuple[float, float, Ends]]:
    """Rate, ratio of a latency to serial's, and its interval, where either policy keeps up."""
    found = []
    own = _latencies(policy, column)
    base = _latencies(serial, column)
    for rate, own_s, base_s in zip(serial["rate"], own, base, strict=True):
        if math.isfinite(own_s.value) or math.isfinite(base_s.value):
            ratio, ends = _ratio(own_s, base_s)
            found.append((rate, ratio, ends))
    return found


def _latencies(curve: pd.DataFrame, column: str) -> list[Latency]:
    """A latency in seconds at each rate of a curve; infinite where the policy can't keep up.

    Latency grows with the rate, so no low end is below that of a lower rate. That helps where the
    interval is wide, as it is near the rate that the policy just keeps up with.
    """
    found = []
    floor_s = 0.0
    for at_rate in curve.to_dict("records"):
        value_s = high_s = math.inf
        if at_rate["stable"]:
            value_s = at_rate[column]
            # A rate at which the policy may or may not keep up has no interval.
            low_s, high_s = at_rate[f"{column}_interval"] or (0.0, math.inf)
            floor_s = max(floor_s, low_s)
        found.append(Latency(value_s, floor_s, high_s))
    return found


def _ratio(own: Latency, serial: Latency) -> tuple[float, Ends]:
    """The ratio of two latencies, with the interval that their own intervals make.

    The distances of the ends add up as squares of logarithms do. Source: Zou & Donner,
    "Construction of confidence limits about effect measures: A general approach", Statistics in
    Medicine 27 (2008). Where one policy can't keep up, the ends of the two are divided: that is
    wider.
    """
    if math.isinf(serial.value):
        return 0.0, (0.0, _divided(own.high, serial.low))
    if math.isinf(own.value):
        return math.inf, (_divided(own.low, serial.high), math.inf)
    ratio = own.value / serial.value
    below = math.hypot(own.log_below, serial.log_above)
    above = math.hypot(own.log_above, serial.log_below)
    return ratio, (ratio * math.exp(-below), ratio * math.exp(above))


def _divided(upper: float, lower: float) -> float:
    return upper / lower if lower > 0 else math.inf
