"""Which setting to run: the best one tried, its runner-up, and how many machines a rate takes.

Pure. Knows a frame with a row for each setting (measure.py makes it). Ignorant of how the settings
were measured.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from benchlib.cell_view import CellView, ShownInCell
from benchlib.study.busy import busy_sentence_of
from benchlib.study.intervals import Interval
from benchlib.study.picture_quality import CHANGED, INDISTINGUISHABLE, SAME
from benchlib.study.slo import Slo
from benchlib.study.store import Run
from benchlib.study.wording import counted, number, per_second, words

BASELINE = "baseline"
"""The recipe that the others are compared with."""

NO_TIME = "not measured: no time left for it"
"""The error of a setting that the budget had no room for."""

STOPPED = "not measured: it was interrupted before"
"""The error of a setting that an interrupt left out."""

NO_RUN = "no run was made"
"""The note of a finalist that got no run to confirm it."""

BROKE_PROMISE = "broke the promise under load"
"""Why a setting is ruled out that was foretold to keep the promise at the rate of its runs."""

NOT_CONFIRMED = "there was no time for it"
NO_FINALIST = "the runs went to settings that were foretold to be better"
STOPPED_BEFORE_RUNS = "measuring was interrupted"
"""Why a setting has no run under load."""

NEEDED_COLUMNS = (
    "setting",
    "recipe",
    "batching",
    "optimisations",
    "exact",
    "promise",
    "memory_gib",
    "memory_of",
    "capacity_images_per_s",
    "capacity_images_per_s_interval",
    "foretold_images_per_s_interval",
    "confirmed",
    "confirming_images",
    "confirming_rate",
    "runs",
    "energy_per_image_j",
    "start_s",
    "compile_s",
    "note",
    "broken_promise",
    "error",
)
"""The columns of the frame of settings that a choice rests on."""

FINALISTS = 2
"""How many settings are confirmed under load."""

LESS_MEMORY = 0.9
"""Memory differs if the smaller one is below this share of the larger one."""

PROCESS_MEMORY = "process RSS"
"""Memory of the whole process. It holds what earlier settings left, so it prefers no setting."""

SIMPLICITY = ("serial", "dynamic", "continuous")
"""The ways to batch, the simplest first."""


@dataclass(frozen=True, repr=False)
class Decision(ShownInCell):
    """The setting to run and the next one, by name. `str()` has the answer in words.

    - `best`, `runner_up`: the names, or None if there is no such setting.
    - `shown`: whether the runs of both show that their capacities differ. None if it was not
      tried, or if one has no interval.
    - `times`, `times_interval`: the capacity of `best` as a multiple of the runner-up's.
    - `reason`: why `best` is preferred where no difference is shown.
    - `table`: the settings, best first, with `ruled_out` (the reason, or None).
    - `gpus`: how many devices make `target_rate` images/s, by the low end of the interval if there
      is one.
    - `cost_per_1000`: of a thousand images on these devices at that rate, in the currency of the
      price.
    - `energy_kwh_per_1000`: what the GPU took for a thousand images.
    - `busy`: what other work took beside the runs, in a sentence.
    - `adapters`: lines that say what a LoRA adapter costs.

    Unknown is None.
    """

    best: str | None
    runner_up: str | None
    shown: bool | None
    table: pd.DataFrame
    slo: str
    target_rate: float
    gpus: int | None = None
    cost_per_1000: float | None = None
    energy_kwh_per_1000: float | None = None
    times: float | None = None
    times_interval: Interval = None
    reason: str | None = None
    busy: str | None = None
    adapters: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = self._best_lines()
        if self.busy is not None:
            lines.append(self.busy)
        if self.best is not None:
            lines += self._difference_lines()
            lines += self._fleet_lines()
        lines += self._missing_lines()
        lines += self.adapters
        return "\n".join(lines)

    def _view(self) -> CellView:
        rows = []
        for row in self.table.to_dict("records"):
            interval = row["capacity_images_per_s_interval"]
            capacity = words(row["capacity_images_per_s"], interval)
            memory = words(row["memory_gib"])
            rows.append((row["setting"], capacity, memory, row["ruled_out"] or "no"))
        head = ("setting, best first", "capacity, images/s", "memory, GiB", "ruled out")
        return CellView(str(self), rows, head)

    def row(self, setting: str) -> dict[Any, Any]:
        """The row of a setting in the table."""
        rows = self.table[self.table["setting"] == setting]
        found: dict[Any, Any] = rows.iloc[0].to_dict()
        return found

    def _best_lines(self) -> list[str]:
        """Which setting to run, in a sentence, and what its pictures show."""
        if self.best is None:
            reasons = dict.fromkeys(self.table["ruled_out"])
            return [f"None of the settings can be run: {', '.join(reasons)}."]
        best = self.row(self.best)
        parts = [f"it {capacity_words(best, self.slo)} with {number(best['memory_gib'])} GiB"]
        parts += _picture_phrase(best)
        if self.runner_up and self.shown:
            ratio = words(self.times, self.times_interval, "times")
            parts.append(f"{ratio} the capacity of the next, {self.runner_up}")
        lines = [f"Run {self.best}: {'; '.join(parts)}."]
        return lines + picture_words(best)

    def _difference_lines(self) -> list[str]:
        """Whether the runs show that it is the best, and what is only foretold."""
        lines = []
        best = self.row(self.best or "")
        if self.runner_up:
            second = self.row(self.runner_up)
            if self.shown is False:
                ratio = words(self.times, self.times_interval, "times")
                lines.append(
                    f"It is not shown to differ from {self.runner_up}: {ratio} its capacity."
                )
            elif self.shown is None:
                why = why_open(best, second)
                lines.append(f"It is not shown to differ from {self.runner_up}: {why}.")
            if self.reason is not None:
                lines.append(f"{self.best} is recommended, as it {self.reason}.")
            lines.append(f"{self.runner_up} {capacity_words(second, self.slo)}.")
            lines += picture_words(second)
        lines.append(_confirmed_words(best))
        rivals = near_rivals(self.table, best, self.runner_up)
        if rivals:
            lines.append(f"Foretold to be about as good, and not confirmed: {'; '.join(rivals)}.")
        return lines

    def _fleet_lines(self) -> list[str]:
        """What the target rate takes in machines, money and energy."""
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
            f"For {images}: {machines}, if requests come at random times to each of them.",
            f"For a thousand images at that rate, the cost {cost}, and the energy {energy}.",
        ]

    def _missing_lines(self) -> list[str]:
        """What broke its promise, what was not measured and why, and what starting took."""
        broken = self.table.dropna(subset=["broken_promise"]).to_dict("records")
        lines = [f"{row['setting']} is ruled out: {row['broken_promise']}." for row in broken]
        errors = self.table.dropna(subset=["error"])
        for left_out, why in ((NO_TIME, "for want of time"), (STOPPED, "as it was interrupted")):
            untried = errors["setting"][errors["error"] == left_out]
            if len(untried):
                lines.append(f"Not measured, {why}: {'; '.join(untried)}.")
        failed = errors[~errors["error"].isin([NO_TIME, STOPPED])].to_dict("records")
        lines += [f"{row['setting']} failed: {row['error']}." for row in failed]
        started = start_words(self.table)
        if started:
            lines.append(started)
        return lines


# ---- words


def capacity_words(row: Mapping[Any, Any], slo: str) -> str:
    """What a setting keeps, as the end of a sentence."""
    rate = row["capacity_images_per_s"]
    if rate is None:
        return f"is not shown to keep {slo}"
    capacity = words(rate, row["capacity_images_per_s_interval"], "images/s")
    verb = "keeps" if row["confirmed"] else "should keep"
    return f"{verb} {slo} up to {capacity}"


def _confirmed_words(row: Mapping[Any, Any]) -> str:
    """How well the capacity of a setting is known."""
    if row["confirmed"]:
        images = counted(row["confirming_images"], "image")
        runs = f"{counted(row['runs'], 'run')} at {per_second(row['confirming_rate'])}"
        return f"{row['setting']} is confirmed under load, by {images} in {runs}."
    reason = row["note"] or NOT_CONFIRMED
    foretold = f"{row['setting']} is foretold from images made alone"
    return f"{foretold}. It is not confirmed under load: {reason}."


def why_open(best: Mapping[Any, Any], second: Mapping[Any, Any]) -> str:
    """Why two settings could not be compared."""
    open_ones = [row["setting"] for row in (best, second) if not row["confirmed"]]
    if len(open_ones) == FINALISTS:
        return "neither is confirmed under load"
    if open_ones:
        return f"{open_ones[0]} is not confirmed under load"
    return "one of them has no interval"


def _picture_phrase(row: Mapping[Any, Any]) -> list[str]:
    """What a setting's pictures are, in a few words; none where picture_words says more."""
    if row["recipe"] == BASELINE:
        return []
    phrases = {
        SAME: "its pictures are the baseline's, to the bit",
        INDISTINGUISHABLE: "its pictures can't be told from the baseline's",
    }
    verdict = row.get("pictures")
    return [phrases[verdict]] if verdict in phrases else []


def picture_words(row: Mapping[Any, Any]) -> list[str]:
    """What a setting does to the picture, where that needs a sentence: it changes, or is not shown.

    There is none for the baseline, and for a setting without pictures.
    """
    verdict = row.get("pictures")
    if verdict in (None, SAME, INDISTINGUISHABLE) or row["recipe"] == BASELINE:
        return []
    reason = row["pictures_reason"]
    if verdict == CHANGED:
        return [f"{row['setting']} changes the picture, {reason}."]
    return [f"Whether {row['setting']} changes the picture is not shown: {reason}."]


def start_words(table: pd.DataFrame) -> str | None:
    """What starting took in all, with compiling told apart; None where nothing was started.

    A recipe is loaded once for all ways to batch, so its longest start counts.
    """
    started = table.dropna(subset=["start_s"])
    if not len(started):
        return None
    longest = started.groupby("recipe")[["start_s", "compile_s"]].max()
    start_min, compile_min = (longest.astype(float).sum() / 60).tolist()
    start = f"{number(start_min)} minutes" if start_min >= 1 else f"{number(60 * start_min)} s"
    sentence = f"Starting took {start} in all"
    compiled = longest[longest["compile_s"] > 0]["compile_s"]
    if not len(compiled):
        return f"{sentence}, and nothing was compiled."
    each = [f"{recipe} {number(seconds / 60)}" for recipe, seconds in compiled.items()]
    compiling = f"{number(compile_min)} minutes of it for compiling"
    return f"{sentence}, {compiling} ({', '.join(each)})."


# ---- the choice


def adapter_lines(prices: pd.DataFrame | None) -> list[str]:
    """What an adapter costs, a line for each way of using one; none if no adapter was priced."""
    if prices is None or prices.empty:
        return []
    made = counted(int(prices["images"].iloc[0]), "image")
    lines = [f"What a LoRA adapter costs, by {made} alone for each way:"]
    for row in prices.to_dict("records"):
        way = row["way"]
        if isinstance(row["lora"], str):
            way = f"{way} ({row['lora']})"
        image = words(row["image_s"], row["image_s_interval"], "s")
        lines.append(f"- {way}: {image} an image, {per_second(row['images_per_s'])}")
    return lines


def decide(
    settings: pd.DataFrame,
    *,
    slo: str | None = None,
    memory_limit_gib: float | None,
    exact_only: bool = False,
    target_rate: float = 1.0,
    price_per_hour: float | None = None,
    runs: Iterable[Run] = (),
    adapters: pd.DataFrame | None = None,
) -> Decision:
    """Returns the setting of the highest capacity that is not ruled out.

    A setting's capacity is the highest rate that keeps the promise of the frame, which `slo` must
    repeat if it is given. Settings that are confirmed under load come before those that are only
    foretold. Two confirmed ones differ if the interval of the ratio of their capacities is above 1.
    If the interval holds 1, the one with less memory is preferred, else the simpler one.

    Ruled out are settings that:

    - failed, or can't keep the promise for a single image
    - broke the promise in their runs, at a rate that was foretold to keep it
    - need more memory than `memory_limit_gib` (None: there is no limit), or an unknown amount
    - change algorithm, weights or steps, or round coarser than bf16, with `exact_only`

    Pictures rule nothing out. The answer says what the best two settings do to them. It also says
    if other work ran beside the `runs` that the frame is made of, and what the `adapters` of
    `price_adapters` cost.

    Raises ValueError, naming the field, for another promise than the frame's, for a rate, price or
    limit that is not above 0, and for a frame that is not that of try_settings.
    """
    _check_settings(settings)
    promise = _promise(settings, slo)
    limit_gib = math.inf if memory_limit_gib is None else memory_limit_gib
    if limit_gib != math.inf:
        _check_above_0("memory_limit_gib", limit_gib, "; None is no limit")
    _check_above_0("target_rate", target_rate)
    if price_per_hour is not None:
        _check_above_0("price_per_hour", price_per_hour, "; None is no price")
    if not isinstance(exact_only, bool):
        raise ValueError(f"exact_only must be True or False, got {exact_only!r}")

    # 1) The best setting and the next one.
    table = ranked(settings, limit_gib, exact_only)
    left = table[table["ruled_out"].isna()].to_dict("records")
    busy = busy_sentence_of(runs)
    lines = tuple(adapter_lines(adapters))
    if not left:
        none = Decision(None, None, None, table, promise, target_rate, busy=busy)
        return replace(none, adapters=lines)
    best = left[0]
    second = left[1] if len(left) > 1 else None
    shown: bool | None = None
    reason: str | None = None
    if second is not None:
        shown = _is_shown(best, second)
        _, interval = capacity_ratio(best, second)
        if interval is not None and interval[0] <= 1:
            best, second, reason = _preferred(best, second)

    # 2) What the target rate takes.
    gpus = _gpus(best, target_rate)
    cost = None
    if price_per_hour is not None and gpus is not None:
        cost = 1000 * gpus * price_per_hour / 3600 / target_rate
    energy_kwh = None
    if best["energy_per_image_j"] is not None:
        energy_kwh = 1000 * best["energy_per_image_j"] / 3.6e6
    times, times_interval = (None, None) if second is None else capacity_ratio(best, second)
    return Decision(
        best=best["setting"],
        runner_up=None if second is None else second["setting"],
        shown=shown,
        table=table,
        slo=promise,
        target_rate=target_rate,
        gpus=gpus,
        cost_per_1000=cost,
        energy_kwh_per_1000=energy_kwh,
        times=times,
        times_interval=times_interval,
        reason=reason,
        busy=busy,
        adapters=lines,
    )


def _check_settings(settings: Any) -> None:
    """Raises ValueError unless `settings` has a row for each of several settings."""
    fix = "give the frame of bl.try_settings"
    if not isinstance(settings, pd.DataFrame):
        raise ValueError(f"settings must be a frame, got {type(settings).__name__}; {fix}")
    missing = [name for name in NEEDED_COLUMNS if name not in settings]
    if missing:
        raise ValueError(f"settings has no column {missing[0]}; {fix}")
    if not len(settings):
        raise ValueError(f"settings is empty; {fix}, which has a row for each setting")
    is_again = settings["setting"].duplicated()
    if is_again.any():
        again = settings["setting"][is_again].iloc[0]
        raise ValueError(f"settings: {again!r} has more than one row; leave one of them")


def _check_above_0(name: str, value: Any, or_none: str = "") -> None:
    """Raises ValueError unless `value` is a finite number above 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}{or_none}")


def _promise(settings: pd.DataFrame, slo: str | None) -> str:
    """The promise that the frame's capacities keep. Raises ValueError where `slo` is another."""
    goal = None if slo is None else Slo.parse(slo)
    measured = settings["promise"].dropna()
    if not len(measured):
        return slo or "the promise"
    promise = str(measured.iloc[0])
    if goal is not None and goal != Slo.parse(promise):
        raise ValueError(f"slo: the capacities are for {promise}, not {slo}; try the settings anew")
    return slo or promise


def ranked(settings: pd.DataFrame, memory_limit_gib: float, exact_only: bool) -> pd.DataFrame:
    """The settings, best first, with `ruled_out`: the reason, or None.

    A foretold capacity is a little too high, since it does not know the load. So confirmed settings
    come first, unless only one could be confirmed. Where runs broke a promise that was foretold to be
    kept, they come first in any case.
    """
    rows = settings.to_dict("records")
    reasons = [_ruled_out(row, memory_limit_gib, exact_only) for row in rows]
    table = settings.assign(ruled_out=pd.Series(reasons, index=settings.index, dtype=object))
    is_out = table["ruled_out"].notna()
    is_open = ~table["confirmed"].astype(bool)
    is_contradicted = settings["broken_promise"].notna().any()
    if (~is_out & ~is_open).sum() < FINALISTS and not is_contradicted:
        is_open[:] = True
    keys = pd.DataFrame(
        {
            "is_out": is_out,
            "is_open": is_open,
            "slowness": -table["capacity_images_per_s"].astype(float),
        }
    )
    order = keys.sort_values(["is_out", "is_open", "slowness"], kind="stable").index
    return table.loc[order]


def finalists(
    settings: pd.DataFrame, memory_limit_gib: float, exact_only: bool
) -> list[dict[Any, Any]]:
    """The rows of the settings that are worth confirming: the FINALISTS best that may be run."""
    table = ranked(settings, memory_limit_gib, exact_only)
    left = table[table["ruled_out"].isna()]
    return left.head(FINALISTS).to_dict("records")


def _ruled_out(row: Mapping[Any, Any], memory_limit_gib: float, exact_only: bool) -> str | None:
    """Why a setting can't be run, or None."""
    if row["error"]:
        return str(row["error"])
    if not row["capacity_images_per_s"]:
        return "misses the promise"
    if row["broken_promise"]:
        return BROKE_PROMISE
    if exact_only and not row["exact"]:
        return "changes the image"
    if row["memory_gib"] is None:
        return "its memory is not known"
    if row["memory_gib"] > memory_limit_gib:
        return "needs too much memory"
    return None


def _is_shown(best: Mapping[Any, Any], second: Mapping[Any, Any]) -> bool | None:
    """Whether two settings are shown to differ; None unless both are confirmed."""
    if not (best["confirmed"] and second["confirmed"]):
        return None
    _, interval = capacity_ratio(best, second)
    return None if interval is None else interval[0] > 1


def capacity_ratio(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> tuple[float | None, Interval]:
    """The capacity of `a` as a multiple of `b`'s, with its interval.

    The interval follows from those of both, whose errors are independent, on a scale of logarithms.
    Source: Zou & Donner, "Construction of confidence limits about effect measures: A general
    approach", Statistics in Medicine 27 (2008).
    """
    rate_a, rate_b = a["capacity_images_per_s"], b["capacity_images_per_s"]
    if not (rate_a and rate_b):
        return None, None
    ratio = rate_a / rate_b
    ends_a = a["capacity_images_per_s_interval"]
    ends_b = b["capacity_images_per_s_interval"]
    if not (ends_a and ends_b and min(*ends_a, *ends_b) > 0):
        return ratio, None
    below = math.hypot(math.log(rate_a / ends_a[0]), math.log(ends_b[1] / rate_b))
    above = math.hypot(math.log(ends_a[1] / rate_a), math.log(rate_b / ends_b[0]))
    return ratio, (ratio * math.exp(-below), ratio * math.exp(above))


def _preferred(
    best: dict[Any, Any], second: dict[Any, Any]
) -> tuple[dict[Any, Any], dict[Any, Any], str]:
    """Of two settings that are not shown to differ, the one to run, the other one, and why."""
    smaller, larger = sorted((best, second), key=lambda row: float(row["memory_gib"]))
    is_own = smaller["memory_of"] != PROCESS_MEMORY
    if is_own and smaller["memory_gib"] < LESS_MEMORY * larger["memory_gib"]:
        gib = f"{number(smaller['memory_gib'])}, not {number(larger['memory_gib'])} GiB"
        return smaller, larger, f"takes less memory: {gib}"
    simpler, other = sorted((best, second), key=_complexity)
    if _complexity(simpler) < _complexity(other):
        return simpler, other, "is simpler"
    return best, second, "has the higher capacity of the two so far"


def _complexity(row: Mapping[Any, Any]) -> tuple[int, int]:
    """The number of optimisations, then how involved the batching is; a simpler one is less."""
    batching = row["batching"]
    place = SIMPLICITY.index(batching) if batching in SIMPLICITY else len(SIMPLICITY)
    return int(row["optimisations"]), place


def near_rivals(
    table: pd.DataFrame, best: Mapping[Any, Any], runner_up: str | None
) -> Sequence[str]:
    """The settings whose forecast does not lie below that of `best`; they were not confirmed."""
    rivals = []
    for row in table.to_dict("records"):
        is_other = row["setting"] not in (best["setting"], runner_up)
        if row["ruled_out"] is None and is_other and not row["confirmed"]:
            is_apart = apart(
                row["foretold_images_per_s_interval"], best["foretold_images_per_s_interval"]
            )
            if is_apart is False:
                rivals.append(row["setting"])
    return rivals


def _gpus(best: Mapping[Any, Any], target_rate: float) -> int | None:
    """How many devices make the target rate, by the low end of the interval, or by the mean."""
    rate = best["capacity_images_per_s"]
    if best["capacity_images_per_s_interval"] is not None:
        rate = best["capacity_images_per_s_interval"][0]
    return math.ceil(target_rate / rate) if rate > 0 else None


def apart(a: Interval, b: Interval) -> bool | None:
    """Whether there is a gap between two intervals; None if one is not known."""
    if a is None or b is None:
        return None
    return a[0] > b[1] or b[0] > a[1]
