"""Which of the settings that were tried to run: a choice, its runner-up, and what it takes for a rate.

Pure. Knows a frame with a row for each setting (benchlib/settings.py makes it). Ignorant of how they were measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pandas as pd

from benchlib.study.intervals import Interval
from benchlib.study.slo import Slo

NO_TIME = "not measured: no time left for it"
"""The error of a setting that the budget had no room for."""


@dataclass(frozen=True)
class Decision:
    """The setting to run and the next one, by name; None where there is none.

    `shown`: whether the intervals of their images/s lie apart; None where one has no interval. `table` has each setting
    at its best load, with `verdict` on the promise and `ruled_out` (the reason, or None), best first. `gpus` is how
    many devices make `target_rate` images/s, by the low end of the interval where there is one; `cost_per_1000` images
    is of that fleet at that rate, in the currency of the price; `energy_kwh_per_1000` is what the GPU took. Unknown is
    None.
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
        """The answer in words, of what the figures support."""
        if self.best is None:
            return (
                f"None of the settings can be run: {', '.join(self.table['ruled_out'].unique())}."
            )
        best = self.table.iloc[0]
        lines = [f"Run {self.best}: {told(best, self.slo)}. It takes {best['memory_gib']:.3g} GiB."]
        if self.runner_up:
            shown = "is shown: their intervals lie apart" if self.shown else "is not shown"
            lines += [f"Next comes {self.runner_up}: {told(self.table.iloc[1], self.slo)}."]
            lines += [f"That the first makes more images/s {shown}."]
        cost = (
            "is not known without price_per_hour"
            if self.cost_per_1000 is None
            else f"is {self.cost_per_1000:.3g}"
        )
        energy = "is not known, as no GPU told its power"
        if self.energy_kwh_per_1000 is not None:
            energy = f"is {self.energy_kwh_per_1000:.3g} kWh of the GPU"
        fleet = f"For {self.target_rate:g} images/s: {self.gpus or 'an unknown number of'} such machine(s)"
        lines += [f"{fleet}, if each is kept as busy as here, with no room for bursts."]
        lines += [f"Of a thousand images the cost {cost}, and the energy {energy}."]
        untried = self.table[self.table["error"] == NO_TIME]
        if len(untried):
            lines += [f"Not measured, for want of time: {'; '.join(untried['setting'])}."]
        return "\n".join(lines)


def told(row: Any, slo: str) -> str:
    """What a row of the table says of its setting's capacity, in words."""
    rate, users = (
        f"{row['images_per_s']:.3g} images/s",
        f"{row['users']} user{'s' * (row['users'] > 1)}",
    )
    if row["verdict"] == "met":
        return f"at least {rate} within {slo}, with {users}"
    return f"{rate} with {users}, not shown to keep {slo}"


def decide(
    settings: pd.DataFrame,
    *,
    slo: str,
    memory_limit_gib: float,
    exact_only: bool = False,
    target_rate: float = 1.0,
    price_per_hour: float | None = None,
) -> Decision:
    """Choose the setting of the highest capacity that is not ruled out.

    Capacity within `slo` is at least the most images/s of a load for which the setting's requests, of all its runs,
    show the promise kept. A setting without such a load comes after all that have one, at its best load that is not
    shown to miss the promise; without one of these it is ruled out, as are settings over `memory_limit_gib` or of
    unknown memory, and with `exact_only` those that change the image. Raises ValueError for a `slo` that can't be read,
    and a target rate or price that is not above 0.
    """
    goal = Slo.parse(slo)
    for name, value in (("target_rate", target_rate), ("price_per_hour", price_per_hour)):
        if value is not None and not value > 0:
            raise ValueError(f"{name}: {value} must be more than 0")
    table = settings.assign(verdict=[_verdict(goal, runs) for runs in settings["latencies_s"]])
    reasons = [_ruled_out(row, memory_limit_gib, exact_only) for row in table.to_dict("records")]
    table["ruled_out"] = pd.Series(reasons, index=table.index, dtype=object)
    order = pd.DataFrame({"out": table["ruled_out"].notna(), "open": table["verdict"] != "met"})
    order["slow"] = -table["images_per_s"].astype(float)
    table = table.loc[
        order.sort_values(["out", "open", "slow"], kind="stable").index
    ].drop_duplicates("setting")
    left = table[table["ruled_out"].isna()].to_dict("records")
    if not left:
        return Decision(None, None, None, table, slo, target_rate, None, None, None)
    best: dict[Any, Any] = left[0]
    second: dict[Any, Any] | None = left[1] if len(left) > 1 else None
    rate = (best["images_per_s_interval"] or (best["images_per_s"],))[0]
    gpus = math.ceil(target_rate / rate) if rate > 0 else None
    energy_j = best["energy_per_image_j"]
    return Decision(
        best=best["setting"],
        runner_up=second["setting"] if second else None,
        shown=apart(best["images_per_s_interval"], second["images_per_s_interval"])
        if second
        else None,
        table=table,
        slo=slo,
        target_rate=target_rate,
        gpus=gpus,
        cost_per_1000=None
        if price_per_hour is None or gpus is None
        else 1000 * gpus * price_per_hour / 3600 / target_rate,
        energy_kwh_per_1000=None if energy_j is None else 1000 * energy_j / 3.6e6,
    )


def _verdict(goal: Slo, runs: list[list[float]]) -> str:
    """Of all runs together, unless one shows by itself that the promise is missed."""
    if any(goal.judge(latencies_s) == "missed" for latencies_s in runs):
        return "missed"
    return goal.judge(chain.from_iterable(runs))


def _ruled_out(row: dict[Any, Any], memory_limit_gib: float, exact_only: bool) -> str | None:
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
    return "needs too much memory" if row["memory_gib"] > memory_limit_gib else None


def apart(a: Interval, b: Interval) -> bool | None:
    """Whether two intervals leave a gap; None where one is not known."""
    return None if a is None or b is None else a[0] > b[1] or b[0] > a[1]
