"""Whether batching pays here: what each policy gains over serial, and the answer in words.

Knows runs of several policies, and their summaries. Ignorant of how the runs were made, and of how
a policy decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from benchlib.cell_view import ShownInCell
from benchlib.questions.batching.disturbance import first_disturbance
from benchlib.study import intervals
from benchlib.study.busy import busy_sentence_of
from benchlib.study.intervals import Interval
from benchlib.study.store import Run
from benchlib.study.wording import counted, per_second, span, words

LATENCIES = {"latency_mean_s": "mean latency", "latency_p95_s": "p95 latency"}
"""The figures of a run's summary that are compared, and what a reader calls each."""

NOT_SHOWN = "not shown"
"""The verdict where an interval holds 1, or where there is none."""

POLICIES = ("continuous", "dynamic")
"""The policies that the answer compares with serial."""

PAYS = 0.95
"""A policy is foretold to pay if its mean latency is less than this many times serial's."""

GAIN_COLUMNS = ["rate", "batching", "figure", "pairs", "ratio", "interval", "verdict"]
FORETOLD_COLUMNS = ["rate", "batching", "figure", "ratio", "interval", "verdict", "images"]

TOLD_LOADS = (0.5, 0.8)
"""The answer tells what is foretold at these shares of serial's throughput."""


class _Case(NamedTuple):
    """A figure of one run.

    Cases that differ in `batching` alone had the same requests at the same moments.
    """

    rate: float
    batching: str
    figure: str
    seed: int


def gains(runs: Iterable[Run], *, over: str = "serial") -> pd.DataFrame:
    """Returns how each policy's latency compares with that of the policy `over`, at the same rates.

    Runs of one rate and seed had the same requests at the same moments, so they form pairs. Invalid
    runs are left out. There is a row for each `rate` (requests/s), `batching` and `figure` (a key
    of LATENCIES):

    - `pairs`: how many pairs have the figure.
    - `ratio`: the geometric mean of the pairs' ratios.
    - `interval`: of the ratio at 95 %, by Student's t on the logarithms; None for one pair.
    - `verdict`: "lower" or "higher" if the interval leaves out 1, else "not shown".
    """
    latency_s = _latencies_by_case(runs)
    logs: dict[Any, list[float]] = {}
    for case, value_s in sorted(latency_s.items()):
        base_s = latency_s.get(case._replace(batching=over))
        if case.batching != over and base_s is not None:
            pairs = logs.setdefault(case[:3], [])
            pairs.append(math.log(value_s / base_s))
    rows = []
    for kind, values in logs.items():
        ratio = _ratio_of_pairs(values)
        rows.append([*kind, len(values), *ratio])
    return pd.DataFrame(rows, columns=GAIN_COLUMNS)


def _latencies_by_case(runs: Iterable[Run]) -> dict[_Case, float]:
    """Returns the LATENCIES of valid runs in seconds. Unknown ones are left out."""
    found = {}
    for run in runs:
        summary = run.summary()
        if not summary["valid"]:
            continue
        rate = run.spec["arrivals"]["rate"]
        batching = run.spec["target"]["batching"]
        for figure in LATENCIES:
            case = _Case(rate, batching, figure, run.spec["seed"])
            if summary[figure]:
                found[case] = summary[figure]
    return found


def _ratio_of_pairs(logs: Sequence[float]) -> tuple[float, Interval, str]:
    """Returns ratio, interval and verdict, from the logarithm of each pair's ratio."""
    n = len(logs)
    mean = float(np.mean(logs))
    if n == 1:
        return math.exp(mean), None, NOT_SHOWN
    deviation = float(np.std(logs, ddof=1))
    half = intervals.t_quantile(0.975, n - 1) * deviation / math.sqrt(n)
    low = math.exp(mean - half)
    high = math.exp(mean + half)
    return math.exp(mean), (low, high), verdict_of((low, high))


def verdict_of(interval: Interval) -> str:
    """Returns "lower" or "higher" if the interval of a ratio leaves out 1, else "not shown"."""
    if interval is None:
        return NOT_SHOWN
    low, high = interval
    if high < 1:
        return "lower"
    return "higher" if low > 1 else NOT_SHOWN


def gain_words(gain: Mapping[Any, Any]) -> str:
    """Returns one row of `gains` in words: what the pairs support, and no more.

    A row of `ForetoldGains` may have a ratio of 0 or infinity.
    """
    subject = f"{gain['batching']}'s {LATENCIES[gain['figure']]}"
    if gain["verdict"] == NOT_SHOWN:
        not_shown = f"a difference of {subject} from serial's is not shown"
        is_bounded = gain["interval"] is not None and math.isfinite(gain["interval"][1])
        return f"{not_shown} ({span(gain['interval'])} times)" if is_bounded else not_shown
    if gain["ratio"] == 0:
        return f"{subject} stays finite, and serial can't keep up"
    if math.isinf(gain["ratio"]):
        return f"{subject} has no end: it can't keep up, and serial can"
    if gain["interval"] is not None and gain["interval"][0] == 0:
        most = words(gain["interval"][1], unit="times serial's")
        return f"{subject} is at most {most}, as serial may not keep up"
    times = words(gain["ratio"], gain["interval"], "times serial's")
    return f"{subject} is {times}"


@dataclass(frozen=True)
class ForetoldGains:
    """What each policy gains over serial in the long run, foretold from services under load.

    - `rows`: for each `rate` (requests/s), `batching` and `figure` the `ratio` of its latency to
      serial's, with `interval` and `verdict` as `gains` has them. A ratio is 0 where serial can't
      keep up, and infinite where the policy can't. `images` is how many services carry it.
    - `refusals`: why nothing is foretold of a policy, by its name.
    """

    rows: pd.DataFrame
    refusals: Mapping[str, str]

    @classmethod
    def none(cls) -> ForetoldGains:
        """Returns that nothing is foretold, since nothing was calibrated."""
        return cls(pd.DataFrame([], columns=FORETOLD_COLUMNS), {})

    def refusal(self, batching: str) -> str | None:
        """Returns why nothing is foretold of a policy beside serial; None if something is."""
        own = self.refusals.get(batching)
        serial = self.refusals.get("serial")
        return own or (serial and f"of serial, {serial}")


@dataclass(frozen=True, repr=False)
class BatchingAnswer(ShownInCell):
    """Whether each policy pays here. `str()` has the answer in words.

    - `gains`: as `gains()` returns it.
    - `serial_images_per_s`: the throughput of serial.
    - `rush_mean_s`: the mean latency of each policy in one rush.
    - `rush_requests`: how many requests the rush had.
    - `foretold`: the mean latency of each policy as a multiple of serial's, simulated in the case
      that `foretold_case` names.
    - `no_gain_cases`: the simulated cases in which continuous batching gains less than 5 %.
    - `calibrated`: what is foretold from services under load.
    - `busy`: what other work took beside the runs, in a sentence, or None.
    - `disturbed`: why the step times show nothing, or None.
    """

    gains: pd.DataFrame
    serial_images_per_s: float | None
    rush_mean_s: Mapping[str, float]
    rush_requests: int
    foretold: Mapping[str, float]
    foretold_case: str
    no_gain_cases: Sequence[str]
    calibrated: ForetoldGains
    busy: str | None = None
    disturbed: str | None = None

    def pays(self, batching: str) -> str:
        """Returns whether a policy pays: "yes", "no", "not shown" or "not measured".

        What is foretold from services under load counts as much as what pairs of runs show. If its
        latency is lower for some figures or loads and higher for others, the answer says so.
        """
        measured = self.gains[self.gains["batching"] == batching]
        verdicts = {*measured["verdict"], *self._told(batching)["verdict"]}
        if not verdicts:
            return "not measured"
        if {"lower", "higher"} <= verdicts:
            return "lower latency for some figures or loads, higher for others"
        if "lower" in verdicts:
            return "yes"
        if "higher" in verdicts:
            return "no"
        return "not shown"

    def __str__(self) -> str:
        answers = [f"{batching} batching {self._pays_words(batching)}" for batching in POLICIES]
        first = ", and ".join(answers)
        lines = [f"{first[0].upper()}{first[1:]}, compared with serial."]
        for batching in POLICIES:
            lines.append(f"- {batching}: {self.pays(batching)}{self._expectation(batching)}")
            lines += self._gain_lines(batching)
        if self.busy is not None:
            lines.append(self.busy)
        if self.gains.empty and self.calibrated.rows.empty:
            lines.append(
                "No two valid runs had the same requests: "
                "give more minutes (budget_min), or see the plan above."
            )
        lines.append(self._rush_line())
        if self.disturbed is not None:
            lines.append(f"The step times show nothing, as they were disturbed: {self.disturbed}.")
            return "\n".join(lines)
        if self.calibrated.rows.empty:
            lines.append(self._foretold_line())
        lines.append(self._predicted_line())
        return "\n".join(lines)

    def _pays_words(self, batching: str) -> str:
        """Returns whether a policy pays, as the end of a sentence."""
        verdict = self.pays(batching)
        phrases = {
            "yes": "pays here",
            "no": "does not pay here",
            NOT_SHOWN: "is not shown to pay here",
            "not measured": "was not measured here",
        }
        return phrases.get(verdict, f"has {verdict}")

    def _told(self, batching: str) -> pd.DataFrame:
        """Returns what is foretold of a policy at the rates measured and at TOLD_LOADS."""
        rates = set(self.gains["rate"])
        if self.serial_images_per_s:
            rates |= {load * self.serial_images_per_s for load in TOLD_LOADS}
        rows = self.calibrated.rows
        return rows[(rows["batching"] == batching) & rows["rate"].isin(rates)]

    def _expectation(self, batching: str) -> str:
        """Returns what the step times say of a policy that was not measured."""
        ratio = self.foretold.get(batching)
        is_measured = self.pays(batching) != "not measured"
        if ratio is None or is_measured or self.disturbed is not None:
            return ""
        expected = "it should pay" if ratio < PAYS else "it should not pay"
        return f"; by the step times {expected} {self.foretold_case}"

    def _gain_lines(self, batching: str) -> list[str]:
        """Returns a line for each rate of which something is foretold or measured, or both."""
        lines = []
        measured = self.gains[self.gains["batching"] == batching]
        told = self._told(batching)
        for rate in sorted({*measured["rate"], *told["rate"]}):
            load = f"    at {per_second(rate, 'request')}"
            if self.serial_images_per_s:
                percent = 100 * rate / self.serial_images_per_s
                load += f" ({percent:.0f} % of what serial can make)"
            told_here = told[told["rate"] == rate]
            if len(told_here):
                images = counted(told_here["images"].max(), "image")
                source = f"foretold for the long run from {images} measured under load"
                lines.append(f"{load}, {source}: {_figures_words(told_here)}")
            measured_here = measured[measured["rate"] == rate]
            if len(measured_here):
                pairs = counted(measured_here["pairs"].max(), "pair")
                source = f"measured in {pairs} of short runs, which begin without a queue"
                lines.append(f"{load}, {source}: {_figures_words(measured_here)}")
        refusal = self.calibrated.refusal(batching)
        if refusal:
            lines.append(f"    nothing is foretold from its runs: {refusal}")
        return lines

    def _rush_line(self) -> str:
        if not self.rush_mean_s:
            return "The rush was not measured."
        means = []
        for batching, mean_s in self.rush_mean_s.items():
            means.append(f"{batching} {words(mean_s, unit='s')}")
        requests = counted(self.rush_requests, "request")
        return f"In one rush of {requests}, the mean latency was: {', '.join(means)} (no interval)."

    def _foretold_line(self) -> str:
        ratios = []
        for batching, ratio in self.foretold.items():
            times = words(ratio, unit="times")
            if math.isinf(ratio):
                times = "without end, as it can't keep up"
            ratios.append(f"{batching} {times}")
        figure = "the mean latency in a long run, as a multiple of serial's, is"
        return f"By the step times, {self.foretold_case}, {figure}: {', '.join(ratios)}."

    def _predicted_line(self) -> str:
        if not self.no_gain_cases:
            return "By the step times, continuous gains 5 % or more in every case simulated."
        cases = "; ".join(self.no_gain_cases)
        return f"By the step times, continuous gains less than 5 % in these cases: {cases}."


def _figures_words(rows: pd.DataFrame) -> str:
    """Returns what is shown of each figure, and then what is not shown, all in one clause."""
    is_open = rows["verdict"] == NOT_SHOWN
    said = [gain_words(row) for row in rows[~is_open].to_dict("records")]
    not_shown = []
    for row in rows[is_open].to_dict("records"):
        figure = LATENCIES[row["figure"]]
        if row["interval"] is not None and math.isfinite(row["interval"][1]):
            figure += f" {span(row['interval'])} times serial's"
        not_shown.append(figure)
    if not_shown:
        which = "no other difference" if said else "no difference from serial"
        said.append(f"{which} is shown ({', '.join(not_shown)})")
    return "; ".join(said)


def rows_at_highest_rate(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Returns the requests of all runs at the highest rate together, by policy.

    Without runs there are none.
    """
    rates = [run.spec["arrivals"]["rate"] for run in runs]
    frames: dict[str, list[pd.DataFrame]] = {}
    for run, rate in zip(runs, rates, strict=True):
        if rate == max(rates):
            batching = run.spec["target"]["batching"]
            frames.setdefault(batching, []).append(run.requests)
    together = {}
    for batching, parts in frames.items():
        together[batching] = pd.concat(parts, ignore_index=True)
    return together


def judge_batching(
    gains: pd.DataFrame,
    *,
    serial_images_per_s: float | None,
    rush: Mapping[str, Run],
    predicted: pd.DataFrame,
    foretold: ForetoldGains | None = None,
    runs: Iterable[Run] = (),
) -> BatchingAnswer:
    """Returns whether batching pays: the answer of notebook 04.

    `gains` is from `gains()`, and `rush` has one run of the rush for each policy. `predicted` has
    mean latencies as multiples of serial's, with a row for each case and a column for each policy.
    `foretold` is what services under load foretell. `runs` are all others that the answer rests on:
    it says if other work ran beside them, beside the rush, or while their servers timed steps.
    """
    rush_mean_s = {}
    for batching, run in rush.items():
        rush_mean_s[batching] = float(run.requests["latency_s"].mean())
    first = predicted.iloc[0].drop("serial")
    all_runs = [*rush.values(), *runs]
    no_gain = predicted.index[predicted["continuous"] > PAYS]
    return BatchingAnswer(
        gains=gains,
        serial_images_per_s=serial_images_per_s,
        rush_mean_s=rush_mean_s,
        rush_requests=max((len(run.requests) for run in rush.values()), default=0),
        foretold={str(batching): float(ratio) for batching, ratio in first.items()},
        foretold_case=str(predicted.index[0]),
        no_gain_cases=tuple(no_gain),
        calibrated=foretold or ForetoldGains.none(),
        busy=busy_sentence_of(all_runs),
        disturbed=first_disturbance(all_runs),
    )
