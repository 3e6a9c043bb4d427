"""How many people a server serves: Little's law, and the answer of notebook 03 in words.

Knows studies of runs, and how each run's latencies were judged (study/slo.py). Ignorant of how a
run is made (measure.py), and of how an estimate comes about (queueing/).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchlib.cell_view import ShownInCell
from benchlib.questions.capacity.outlook import Outlook
from benchlib.questions.capacity.search import Capacity
from benchlib.study.busy import busy_sentence_of
from benchlib.study.store import Run, Study
from benchlib.study.wording import counted, per_second

if TYPE_CHECKING:
    import pandas as pd


def littles_law(study: Study) -> pd.DataFrame:
    """Returns for each run of a closed loop whether its figures agree with each other.

    By Little's law, the mean number of requests under way is the throughput times the mean latency.
    So `product` (`images_per_s` times `mean_latency_s`) comes near `users`. In a short run it is
    less, because the run cuts off images at its edges.

    The number of requests under way was also sampled during the run. `difference` is how far these
    samples are from the rows, and `passed` says whether it is within `limit` (see validity.checks).
    """
    import pandas as pd

    names = ["users", "images_per_s", "mean_latency_s", "product", "difference", "limit", "passed"]
    rows = []
    for run in study.runs:
        summary = run.summary()
        check = run.checks().iloc[0]
        images_per_s = summary["throughput_images_per_s"]
        mean_latency_s = summary["latency_mean_s"]
        product = None
        if images_per_s is not None and mean_latency_s is not None:
            product = images_per_s * mean_latency_s
        rows.append(
            {
                "users": run.spec["arrivals"]["users"],
                "images_per_s": images_per_s,
                "mean_latency_s": mean_latency_s,
                "product": product,
                "difference": check["value"],
                "limit": check["limit"],
                "passed": check["passed"],
            }
        )
    return pd.DataFrame(rows, columns=names)


def most_images_per_s(study: Study) -> float | None:
    """Returns the highest throughput of the valid runs; None if no run has one."""
    rates = [run.summary()["throughput_images_per_s"] for run in study.runs if _is_valid(run)]
    return max((rate for rate in rates if rate), default=None)


def _is_valid(run: Run) -> bool:
    return bool(run.summary()["valid"])


@dataclass(frozen=True, repr=False)
class PeopleServed(ShownInCell):
    """How many people a server serves. `str()` has the answer in words.

    - `images_per_s`: the highest throughput, with `users` in a closed loop. Without closed loops
      `users` is None, and the throughput is that of runs at a rate (None: no valid run).
    - `users_within_slo`: the highest number of users with which the promise `slo` was shown to be
      kept.
    - `capacity`: what find_capacity found for requests at a rate; None: there was no search.
    - `users_seen`, `rate_seen`: up to where the runs kept the promise, though they may be too short
      to show it.
    - `outlook`: what was foretold; None: nothing was.
    - `folder`: where the runs are.
    - `busy`: what other work took beside the runs, in a sentence; None: too little to matter.

    Where something was foretold, that is the answer. Else it is what the runs show by themselves.
    """

    images_per_s: float | None
    users: int | None
    users_within_slo: int | None
    users_seen: int | None
    rate_seen: float | None
    slo: str
    capacity: Capacity | None
    folder: Path
    outlook: Outlook | None = None
    busy: str | None = None

    def __str__(self) -> str:
        lines = [] if self.outlook is None else self.outlook.lines()
        if self.outlook is not None and self.outlook.is_contradicted:
            lines += [self._most(), self._users()]
        elif self.outlook is None or self.outlook.refusal is not None:
            lines += [self._most(), self._users(), self._rate()]
        if self.busy is not None:
            lines.insert(1, self.busy)
        where = f"Rows, records and figures are in {self.folder}"
        return "\n".join([*lines, where])

    def _most(self) -> str:
        if self.images_per_s is None:
            return "No valid run shows how many images it makes."
        if self.users is None:
            return f"The runs at a rate made up to {per_second(self.images_per_s)}."
        people = f"{counted(self.users, 'user')} at a time"
        return f"It makes at most {per_second(self.images_per_s)}, with {people}."

    def _users(self) -> str:
        if self.users_within_slo is not None:
            people = f"{counted(self.users_within_slo, 'user')} at a time"
            return f"It keeps {self.slo} with up to {people}."
        not_shown = f"It is not shown to keep {self.slo} with any number of users."
        if self.users_seen is None:
            return not_shown
        people = f"{counted(self.users_seen, 'user')} at a time"
        return f"{not_shown} In these runs, too short to show it, it did with up to {people}."

    def _rate(self) -> str:
        found = self.capacity or Capacity(None, (None, None), (), "there was no time", self.slo)
        if found.rate is not None or self.rate_seen is None:
            return str(found)
        rate = per_second(self.rate_seen)
        return f"{found} In these runs it kept the promise up to {rate}."


def judge_load(
    closed: Study,
    at_rates: Study,
    capacity: Capacity | None,
    *,
    slo: str,
    outlook: Outlook | None = None,
) -> PeopleServed:
    """Returns how many people the server serves: the answer of notebook 03.

    `closed` has runs of closed loops, `at_rates` runs at fixed rates. `capacity` is the result of a
    search, if there was one, and `outlook` is what was foretold.
    """
    trials = () if capacity is None else capacity.runs
    rows = closed.judge(slo).to_dict("records") if closed.runs else []
    valid = [row for row in rows if row["valid"] and row["throughput_images_per_s"]]
    best = max(valid, key=lambda row: float(row["throughput_images_per_s"]), default=None)
    kept = [int(row["users"]) for row in valid if row["verdict"] == "met"]
    users_seen = _kept_up_to(closed.runs, "users", slo)
    runs_at_rates = (*at_rates.runs, *trials)
    most = most_images_per_s(Study(at_rates.path, runs_at_rates))
    each_once = {id(run): run for run in (*closed.runs, *runs_at_rates)}
    return PeopleServed(
        images_per_s=best["throughput_images_per_s"] if best else most,
        users=int(best["users"]) if best else None,
        users_within_slo=max(kept, default=None),
        users_seen=None if users_seen is None else int(users_seen),
        rate_seen=_kept_up_to(runs_at_rates, "rate", slo),
        slo=slo,
        capacity=capacity,
        folder=closed.path,
        outlook=outlook,
        busy=busy_sentence_of(each_once.values()),
    )


def _kept_up_to(runs: Sequence[Run], by: str, slo: str) -> float | None:
    """Returns the highest load up to which all valid runs had the promised share in time, or None.

    A run whose share of images in time is too low breaks the promise at its load.
    """
    from benchlib.study.latency import latencies
    from benchlib.study.slo import Slo

    goal = Slo.parse(slo)
    kept: list[float] = []
    broken: list[float] = []
    for run in runs:
        latency_s = latencies(run.requests)
        if not _is_valid(run) or not len(latency_s):
            continue
        in_time = (latency_s <= goal.latency_s).mean()
        loads = kept if in_time >= goal.q else broken
        loads.append(run.spec["arrivals"][by])
    lowest_broken = min(broken, default=math.inf)
    return max((load for load in kept if load < lowest_broken), default=None)
