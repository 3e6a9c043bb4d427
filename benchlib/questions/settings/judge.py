"""Which setting to run: the best one tried, its runner-up, and how many machines a rate takes.

Pure. Knows a frame with a row for each setting and load (measure.py makes it). Ignorant of how the
settings were measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pandas as pd

from benchlib.study.intervals import Interval
from benchlib.study.picture_quality import CHANGED, INDISTINGUISHABLE, SAME
from benchlib.study.slo import Slo
from benchlib.study.wording import counted, number

BASELINE = "baseline"
"""The recipe that the others are compared with."""

NO_TIME = "not measured: no time left for it"
"""The error of a setting that the budget had no room for."""

PROMISED_IMAGES = 4
"""By default, 95 % of the images must take less than this many times one image alone."""


@dataclass(frozen=True)
class Decision:
    """The setting to run and the next one, by name. `str()` has the answer in words.

    - `best`, `runner_up`: the names, or None if there is no such setting.
    - `shown`: whether the intervals of their images/s lie apart; None if one has no interval.
    - `table`: each setting at its best load, best first, with `verdict` on the promise `slo` and
      `ruled_out` (the reason, or None).
    - `gpus`: how many devices make `target_rate` images/s, by the low end of the interval if there
      is one.
    - `cost_per_1000`: of a thousand images on these devices at that rate, in the currency of the
      price.
    - `energy_kwh_per_1000`: what the GPU took for a thousand images.

    Unknown is None.
    """

    best: str | None
    runner_up: str | None
    shown: bool | None
    table: pd.DataFrame
    slo: str
    target_rate: float
    gpus: int | None
    cost_per_1000: float | None
    energy_kwh_per_1000: float | None

    def __str__(self) -> str:
        lines = self._best_lines()
        if self.best is not None:
            lines += self._fleet_lines()
        untried = self.table["setting"][self.table["error"] == NO_TIME]
        if len(untried):
            lines.append(f"Not measured, for want of time: {'; '.join(untried)}.")
        return "\n".join(lines)

    def _best_lines(self) -> list[str]:
        """Returns which setting to run, and whether the runs show that it is the best."""
        if self.best is None:
            reasons = self.table["ruled_out"].unique()
            return [f"None of the settings can be run: {', '.join(reasons)}."]
        best, *others = self.table.to_dict("records")
        capacity = capacity_words(best, self.slo)
        lines = [f"Run {self.best}: {capacity}. It takes {number(best['memory_gib'])} GiB."]
        lines += picture_words(best)
        if self.runner_up:
            next_best = capacity_words(others[0], self.slo)
            lines.append(f"Next comes {self.runner_up}: {next_best}.")
            lines += picture_words(others[0])
            shown = "is not shown that the first makes more images/s: measure more or longer runs"
            if self.shown:
                shown = "is shown that the first makes more images/s: the intervals lie apart"
            lines.append(f"It {shown}.")
        return lines

    def _fleet_lines(self) -> list[str]:
        """Returns what the target rate takes in machines, money and energy."""
        machines = "an unknown number of such machines"
        if self.gpus is not None:
            machines = counted(self.gpus, "such machine")
        images = "1 image/s" if self.target_rate == 1 else f"{self.target_rate:g} images/s"
        cost = "is not known without price_per_hour"
        if self.cost_per_1000 is not None:
            cost = f"is {number(self.cost_per_1000)}"
        energy = "is not known, as no GPU reported its power"
        if self.energy_kwh_per_1000 is not None:
            energy = f"is {number(self.energy_kwh_per_1000)} kWh of the GPU"
        return [
            f"For {images}: {machines}, if each is kept as busy as here, with no room for bursts.",
            f"For a thousand images, the cost {cost}, and the energy {energy}.",
        ]


def capacity_words(row: Mapping[Any, Any], slo: str) -> str:
    """Returns in words the capacity of the setting in a row of the table."""
    rate = f"{number(row['images_per_s'])} images/s"
    users = counted(row["users"], "user")
    if row["verdict"] == "met":
        return f"at least {rate} within {slo}, with {users}"
    return f"{rate} with {users}, not shown to keep {slo}"


def picture_words(row: Mapping[Any, Any]) -> list[str]:
    """Returns what the setting in a row does to the picture, as one sentence or none.

    There is none for the baseline, and for a setting without pictures.
    """
    verdict = row.get("pictures")
    if verdict is None or row["recipe"] == BASELINE:
        return []
    reason = row["pictures_reason"]
    if verdict == SAME:
        return [f"Its pictures are the baseline's, to the bit: {reason}."]
    if verdict == INDISTINGUISHABLE:
        return [f"Its pictures can't be told from the baseline's: {reason}."]
    if verdict == CHANGED:
        return [f"It changes the picture, {reason}."]
    return [f"Whether it changes the picture is not shown: {reason}."]


def default_promise(settings: pd.DataFrame) -> str:
    """Returns a promise that suits the model, for 95 % of the images.

    Its limit is PROMISED_IMAGES times the time of one image in the first row.
    """
    limit_s = max(0.001, PROMISED_IMAGES * settings["image_s"].iloc[0])
    return f"p95 < {limit_s:.3f} s"


def decide(
    settings: pd.DataFrame,
    *,
    slo: str | None = None,
    memory_limit_gib: float,
    exact_only: bool = False,
    target_rate: float = 1.0,
    price_per_hour: float | None = None,
) -> Decision:
    """Returns the setting of the highest capacity that is not ruled out.

    A setting's capacity is the highest images/s of a load that is shown to keep the promise `slo`
    (or `default_promise`). The requests of all runs of a load are judged together. A setting
    without such a load comes after all settings with one. It stands at its best load that is not
    shown to miss the promise. Ruled out are settings that:

    - miss the promise under each load, failed, or made no image
    - need more memory than `memory_limit_gib`, or an unknown amount
    - change algorithm, weights or steps, or round coarser than bf16, with `exact_only`

    Pictures rule nothing out. The answer says what the best two settings do to them.

    Raises ValueError for a `slo` that can't be read, and for a target rate or price that is not
    above 0.
    """
    slo = slo or default_promise(settings)
    goal = Slo.parse(slo)
    for name, value in (("target_rate", target_rate), ("price_per_hour", price_per_hour)):
        if value is not None and not value > 0:
            raise ValueError(f"{name}: {value} must be more than 0")

    # 1) The best setting and the next one.
    table = _ranked(settings, goal, memory_limit_gib, exact_only)
    left = table[table["ruled_out"].isna()].to_dict("records")
    if not left:
        return Decision(None, None, None, table, slo, target_rate, None, None, None)

    best = left[0]
    runner_up, shown = None, None
    if len(left) > 1:
        runner_up = left[1]["setting"]
        shown = apart(best["images_per_s_interval"], left[1]["images_per_s_interval"])

    # 2) What the target rate takes.
    gpus = _gpus(best, target_rate)
    cost = None
    if price_per_hour is not None and gpus is not None:
        cost = 1000 * gpus * price_per_hour / 3600 / target_rate
    energy_kwh = None
    if best["energy_per_image_j"] is not None:
        energy_kwh = 1000 * best["energy_per_image_j"] / 3.6e6
    return Decision(
        best=best["setting"],
        runner_up=runner_up,
        shown=shown,
        table=table,
        slo=slo,
        target_rate=target_rate,
        gpus=gpus,
        cost_per_1000=cost,
        energy_kwh_per_1000=energy_kwh,
    )


def _ranked(
    settings: pd.DataFrame, goal: Slo, memory_limit_gib: float, exact_only: bool
) -> pd.DataFrame:
    """Returns each setting at its best load, best first, with `verdict` and `ruled_out`."""
    table = settings.assign(verdict=[_verdict(goal, runs) for runs in settings["latencies_s"]])
    reasons = [_ruled_out(row, memory_limit_gib, exact_only) for row in table.to_dict("records")]
    table["ruled_out"] = pd.Series(reasons, index=table.index, dtype=object)
    keys = pd.DataFrame(
        {
            "is_out": table["ruled_out"].notna(),
            "is_open": table["verdict"] != "met",
            "slowness": -table["images_per_s"].astype(float),
        }
    )
    order = keys.sort_values(["is_out", "is_open", "slowness"], kind="stable").index
    return table.loc[order].drop_duplicates("setting")


def _gpus(best: Mapping[Any, Any], target_rate: float) -> int | None:
    """Returns how many devices make the target rate.

    The rate of one device is the low end of its interval, or without one its mean.
    """
    rate = best["images_per_s"]
    if best["images_per_s_interval"] is not None:
        rate = best["images_per_s_interval"][0]
    return math.ceil(target_rate / rate) if rate > 0 else None


def _verdict(goal: Slo, runs: list[list[float]]) -> str:
    """Returns what all runs of a load show together.

    A single run that misses the promise outweighs the others.
    """
    if any(goal.judge(latencies_s) == "missed" for latencies_s in runs):
        return "missed"
    return goal.judge(chain.from_iterable(runs))


def _ruled_out(row: dict[Any, Any], memory_limit_gib: float, exact_only: bool) -> str | None:
    """Returns why a setting can't be run under one load, or None."""
    if row["error"]:
        return str(row["error"])
    if not row["images_per_s"]:
        return "made no image while it was measured"
    if row["verdict"] == "missed":
        return "misses the promise"
    if exact_only and not row["exact"]:
        return "changes the image"
    if row["memory_gib"] is None:
        return "its memory is not known"
    if row["memory_gib"] > memory_limit_gib:
        return "needs too much memory"
    return None


def apart(a: Interval, b: Interval) -> bool | None:
    """Returns whether there is a gap between two intervals; None if one is not known."""
    if a is None or b is None:
        return None
    return a[0] > b[1] or b[0] > a[1]
