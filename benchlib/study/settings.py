"""Which of the settings that were tried to run: a choice, its runner-up, and what it takes for a rate.

Pure. Knows a frame with a row for each setting (benchlib/settings.py makes it). Ignorant of how they were measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchlib.study.estimates import Interval
from benchlib.study.statistics import Slo


@dataclass(frozen=True)
class Decision:
    """The setting to run and the next one, by name; None where there is none.

    `shown`: whether the intervals of their capacities lie apart; None where one has no interval. `table` is the frame
    with `verdict` on the promise, `capacity_images_per_s` (None where the promise is missed), its `_interval`, and
    `ruled_out` (the reason, or None), best first. `gpus` is how many devices make `target_rate` images/s, by the low
    end of the interval where there is one; `cost_per_1000` images is of that fleet at that rate, in the currency of the
    price; `energy_kwh_per_1000` is what the GPU took. Unknown is None.
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
            return f"None of the settings can be run: {', '.join(self.table['ruled_out'].unique())}."
        best = self.table.iloc[0]
        lines = [f"Run {self.best}: {best['images_per_s']:.3g} images/s at a full queue, {best['memory_gib']:.3g} GiB."]
        kept = "was met" if best["verdict"] == "met" else "is not shown to be kept: measure longer"
        lines += [f'The promise "{self.slo}" {kept}.']
        if self.runner_up:
            shown = "is shown: their intervals lie apart" if self.shown else "is not shown"
            lines += [f"Next comes {self.runner_up}; that the first makes more images/s {shown}."]
        lines += [
            f"For {self.target_rate:g} images/s: {self.gpus or 'an unknown number of'} such machine(s), "
            f"each kept as full as here, with no room "
            f"for bursts. A thousand images cost {_known(self.cost_per_1000, 'of the currency of the price')} and "
            f"take {_known(self.energy_kwh_per_1000, 'kWh of the GPU')}."
        ]
        return "\n".join(lines)


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

    Capacity is the images/s at a full queue, as long as these requests don't show that `slo` is missed. Ruled out are
    also settings over `memory_limit_gib` or of unknown memory, and with `exact_only` those that change the image.
    Raises ValueError for a `slo` that can't be read, and a target rate or price that is not above 0.
    """
    goal = Slo.parse(slo)
    for name, value in (("target_rate", target_rate), ("price_per_hour", price_per_hour)):
        if value is not None and not value > 0:
            raise ValueError(f"{name}: {value} must be more than 0")
    table = settings.assign(verdict=[_verdict(goal, runs) for runs in settings["latencies_s"]])
    reasons = [_ruled_out(row, memory_limit_gib, exact_only) for row in table.to_dict("records")]
    table["ruled_out"] = pd.Series(reasons, index=table.index, dtype=object)
    missed = (table["verdict"] == "missed").to_numpy()
    for name in ("images_per_s", "images_per_s_interval"):
        kept = [None if gone else value for gone, value in zip(missed, table[name], strict=True)]
        table[f"capacity_{name}"] = pd.Series(kept, index=table.index, dtype=object)
    order = table["images_per_s"].astype(float).sort_values(ascending=False, kind="stable").index
    table = table.loc[order]
    table = pd.concat([table[table["ruled_out"].isna()], table[table["ruled_out"].notna()]])
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
        shown=apart(best["images_per_s_interval"], second["images_per_s_interval"]) if second else None,
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
    """Of all runs: one that shows that the promise is missed outweighs those that show that it is met."""
    verdicts = {goal.judge(latencies_s) for latencies_s in runs}
    return next((verdict for verdict in ("missed", "met") if verdict in verdicts), "not shown")


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


def _known(value: float | None, unit: str) -> str:
    return "an unknown amount" if value is None else f"{value:.3g} {unit}"


def apart(a: Interval, b: Interval) -> bool | None:
    """Whether two intervals leave a gap; None where one is not known."""
    return None if a is None or b is None else a[0] > b[1] or b[0] > a[1]
