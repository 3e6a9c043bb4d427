"""Whether two sets of runs differ, and whether the newest of several studies got worse.

Knows the records, summaries and services of finished runs. Ignorant of how a run's figures are
computed (summary.py), and of the statistics of services (shift.py) and quantiles (intervals.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchlib.cell_view import CellView, ShownInCell
from benchlib.study import intervals
from benchlib.study.busy import busy_sentence
from benchlib.study.equal_work import ByWork, seconds_by_work
from benchlib.study.folders import run_words
from benchlib.study.shift import MIN_IMAGES, RUN_SHIFT, shift
from benchlib.study.wording import counted, words

if TYPE_CHECKING:
    from benchlib.study.store import Run, Study

SERVICE = "service_s"
"""The most telling figure: the time of one image in the model, which holds no wait."""

COMPARED = {
    "latency_p50_s": "slower",
    "latency_p95_s": "slower",
    "throughput_images_per_s": "faster",
    "memory": "more",
}
"""The figures of a run's summary that are compared, and what a rise of each is called."""

FIGURES = {
    SERVICE: "time in the model of one image",
    "latency_p50_s": "median latency",
    "latency_p95_s": "p95 latency",
    "throughput_images_per_s": "throughput",
    "memory": "memory",
}
"""What a reader calls each figure."""

MIN_EFFECTS = {SERVICE: 0.02} | dict.fromkeys(COMPARED, 0.05)
"""The smallest difference of each figure that matters, as a share.

Times of equal work differ by 1 % or so. Then twenty images a side tell 3 % from 2 %, and runs
that shift by 0.5 % hardly ever look 2 % apart. Latencies hold queueing noise, so 5 % is theirs.
"""

ONE_RUN = (
    f"one run on each side: the interval allows for a shift of {100 * RUN_SHIFT:g} % between runs, "
    "and can't know a larger one: repeat both"
)

_OPPOSITE = {"slower": "faster", "faster": "slower", "more": "less"}

_CAUSES = {
    "invalid": ["invalid"],
    "worse": ["slower", "more"],
    "inconclusive": ["inconclusive"],
    "better": ["faster", "less"],
}
"""The verdict of a study, gravest first, and the verdicts of single figures that lead to it."""

_MACHINE = ("cpu", "cores", "memory_gib", "gpu", "gpu_memory_gib")
_SETTINGS = (
    "model", "unet", "vae", "scheduler", "device", "dtype", "recipe", "batching",
    "max_batch_size", "max_wait_ms", "replicas",
)  # fmt: skip
_NO_SUSPECTS = ("url", "load", "memory_before", "step_times", "warm_up_s")
"""Fields that begin like this differ from run to run by nature, as what was measured does."""

_NUMBERS = ["a", "b", "ratio", "low", "high"]
_COLUMNS = ["study", "load", "figure", *_NUMBERS, "verdict", "note"]


@dataclass(frozen=True, repr=False)
class Comparison(ShownInCell):
    """How runs b differ from runs a.

    `table` has a row for each figure: the means `a` and `b`, `ratio` b/a, its `interval`, `verdict`
    and `note`. `suspects` lists what else differed. `verdict` is the gravest of all figures but
    memory.
    """

    table: pd.DataFrame
    suspects: tuple[str, ...]
    verdict: str

    def _view(self) -> CellView:
        rows = []
        for row in self.table.reset_index().to_dict("records"):
            ratio = words(row["ratio"], row["interval"], "times")
            rows.append((FIGURES[row["figure"]], row["verdict"], ratio, _note(row)))
        head = ("figure", "verdict", "b divided by a", "note")
        return CellView(f"b compared with a: {self.verdict}", rows, head)


def compare(
    a: Sequence[Run],
    b: Sequence[Run],
    *,
    allow: Iterable[str] = (),
    min_effect: float | None = None,
    comparisons: int = 1,
    of: int | None = None,
) -> Comparison:
    """Returns how runs `b` differ from runs `a` of the same load; each is a list of repetitions.

    The time in the model of one image comes first, where the runs have it: see `shift`. Its
    interval holds at 95 % by itself. Each other figure's ratio b/a has Welch's t-interval of the
    logarithms over runs. Those intervals hold at 95 % for all of these figures together. Both hold
    for all `comparisons` that are judged together (Bonferroni). `of` is the older name of
    `comparisons`: it still works, but prefer the new name. The verdict of a figure is:

    - "faster" or "slower" (memory: "less" or "more"): the interval leaves out 1, and the ratio is
      beyond `min_effect`. None stands for MIN_EFFECTS: 2 % for the time in the model, else 5 %.
    - "no difference beyond 5 %": the interval lies within `min_effect`.
    - "inconclusive": anything else. One run on a side can't show how runs differ from one another
      (Kalibera & Jones, "Rigorous benchmarking in reasonable time", ISMM 2013).
    - "invalid": one of the runs is invalid.

    Memory is the server's CUDA peak, or without a GPU its RSS. Differences in packages, driver,
    commit or settings become suspects. A difference in "machine", "model", "workload", "arrivals"
    or "api" raises ValueError that names it, unless `allow` has that name.
    """
    if not (a and b):
        raise ValueError("a and b: each must hold at least one run")
    if min_effect is not None and not 0 < min_effect <= 1:
        raise ValueError(
            f"min_effect must be a share above 0, at most 1, got {min_effect}: 5 % is 0.05"
        )

    # 1) What must be alike, and whether all runs are valid.
    if of is not None:
        comparisons = of
    runs = [*a, *b]
    differing = _differing(runs, set(allow))
    summaries = [run.summary() for run in runs]
    invalid = [summary["invalid_reason"] for summary in summaries if not summary["valid"]]

    # 2) The time in the model, where the servers send it.
    rows: list[dict[str, Any]] = []
    of_a = [seconds_by_work(run.requests) for run in a]
    of_b = [seconds_by_work(run.requests) for run in b]
    if any([*of_a, *of_b]):
        row = service_row(
            of_a,
            of_b,
            in_turns=_are_in_turns(a, b),
            min_effect=min_effect,
            comparisons=comparisons,
        )
        rows.append(_invalid_row(invalid[0]) if invalid else row)
        rows[0]["figure"] = SERVICE

    # 3) A row for each other figure.
    for figure, rise in COMPARED.items():
        row = dict.fromkeys(("a", "b", "ratio", "interval")) | {"verdict": "inconclusive"}
        values = [_figure(summary, figure) for summary in summaries]
        known = [float(value) for value in values if value is not None and value > 0]
        if invalid:
            row = _invalid_row(invalid[0])
        elif len(known) < len(values):
            row |= {"note": "a run does not have this figure"}
        else:
            logs = np.log(known)
            logs_a, logs_b = np.split(logs, [len(a)])
            least = smallest_effect(figure, min_effect)
            row |= _ratio(logs_a, logs_b, rise, least, comparisons)
        rows.append({"figure": figure, **row})

    # 4) The verdict, and what else differs.
    table = pd.DataFrame(rows).set_index("figure")
    suspects = _suspects(a[0].record, b[0].record, differing)
    return Comparison(table, tuple(suspects), _verdict_of_speed(table))


def service_row(
    a: Sequence[ByWork],
    b: Sequence[ByWork],
    *,
    in_turns: bool = False,
    min_effect: float | None = None,
    comparisons: int = 1,
) -> dict[str, Any]:
    """Returns the row of the time in the model of one image, of runs `a` against runs `b`.

    `a` is the median seconds of those images of a that have their like in b, and `b` is `ratio`
    times as much. `comparisons` are judged together (Bonferroni).
    """
    row: dict[str, Any] = dict.fromkeys(("a", "b", "ratio", "interval"))
    row |= {"verdict": "inconclusive", "note": None}
    if not (all(a) and all(b)):
        return row | {"note": "a run does not have this figure"}
    found = shift(a, b, in_turns=in_turns, misses=0.05 / comparisons)
    if found is None:
        return row | {"note": "no image has its like, of equal work, on the other side"}

    # 1) The ratio.
    ratio = math.exp(found.log_ratio)
    row |= {"a": found.typical_s, "b": ratio * found.typical_s, "ratio": ratio}
    if found.half is None:
        note = f"fewer than {MIN_IMAGES} images of equal work on a side: measure longer"
        return row | {"note": note}

    # 2) Its interval and verdict.
    row["interval"] = _ends(found.log_ratio, found.half)
    least = smallest_effect(SERVICE, min_effect)
    row |= _judged(found.log_ratio, found.half, "slower", least)

    # 3) What the interval does not hold.
    notes = [row["note"]] if row["note"] else []
    left_out = _images(a) + _images(b) - sum(found.images)
    if left_out:
        notes.append(f"left out: {counted(left_out, 'image')} without their like")
    if found.is_of_one_run:
        notes.append(ONE_RUN)
    row["note"] = "; ".join(notes) or None
    return row


def _images(runs: Sequence[ByWork]) -> int:
    return sum(len(seconds) for run in runs for seconds in run.values())


def _are_in_turns(a: Sequence[Run], b: Sequence[Run]) -> bool:
    """Returns whether the runs were taken in turns: a turn ends before the next one begins.

    A turn is one run of each side. The runs of a side are in the order of time.
    """
    if len(a) != len(b):
        return False
    turns = []
    for of_a, of_b in zip(a, b, strict=True):
        turns.append(sorted(str(run.record.get("started_at")) for run in (of_a, of_b)))
    return all(turn[1] < following[0] for turn, following in pairwise(turns))


def _note(row: Mapping[Any, Any]) -> str:
    """The note of a row of a table, or no words."""
    note = row["note"]
    return "" if pd.isna(note) else str(note)


def _verdict_of_speed(table: pd.DataFrame) -> str:
    """Returns the gravest verdict of all figures but memory.

    If the time in the model is known, figures that are inconclusive beside it do not count.
    """
    is_service = table.index == SERVICE
    service = table[is_service & table["ratio"].notna()]
    others = table[~is_service].drop(index="memory")
    verdicts = [*service["verdict"], *others["verdict"]]
    for verdict in ("invalid", "slower", "faster"):
        if verdict in verdicts:
            return verdict
    if not len(service) and "inconclusive" in verdicts:
        return "inconclusive"
    return str(verdicts[0])


def smallest_effect(figure: str, min_effect: float | None) -> float:
    """Returns the smallest difference that matters: as given, or the figure's own."""
    if min_effect is None:
        return MIN_EFFECTS[figure]
    return min_effect


def _invalid_row(reason: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(("a", "b", "ratio", "interval"))
    return row | {"verdict": "invalid", "note": reason}


def _ratio(
    a: np.ndarray[Any, Any],
    b: np.ndarray[Any, Any],
    rise: str,
    min_effect: float,
    comparisons: int,
) -> dict[str, Any]:
    """Returns the ratio b/a with interval and verdict, from the logarithms of each run's figure.

    Source: Welch's t-interval for two means of unequal variance, with Satterthwaite's degrees of
    freedom.
    """
    difference = float(b.mean() - a.mean())
    row: dict[str, Any] = {
        "a": float(np.exp(a.mean())),
        "b": float(np.exp(b.mean())),
        # The ratio comes from the difference, as the interval does. A ratio of the means may be
        # rounded differently, and then lie outside an interval of no width.
        "ratio": math.exp(difference),
    }
    if min(len(a), len(b)) < 2:
        return row | {"note": "one run on a side: repeat it (5 times are good)"}

    variance_a = float(a.var(ddof=1)) / len(a)
    variance_b = float(b.var(ddof=1)) / len(b)
    variance = variance_a + variance_b
    half = 0.0
    if variance > 0:
        part_a = variance_a**2 / (len(a) - 1)
        part_b = variance_b**2 / (len(b) - 1)
        freedom = variance**2 / (part_a + part_b)
        share = 0.025 / (comparisons * len(COMPARED))
        half = intervals.t_quantile(1 - share, freedom) * math.sqrt(variance)
    row["interval"] = _ends(difference, half)
    return row | _judged(difference, half, rise, min_effect)


def _ends(difference: float, half: float) -> tuple[float, float]:
    """Returns the interval of a ratio whose logarithm is `difference`, give or take `half`."""
    return math.exp(difference - half), math.exp(difference + half)


def _judged(
    difference: float,
    half: float,
    rise: str,
    min_effect: float,
) -> dict[str, Any]:
    """Returns the verdict on a ratio, from its logarithm and half its interval, and a note."""
    band = math.log1p(min_effect)
    if abs(difference) + half <= band:
        return {"verdict": f"no difference beyond {100 * min_effect:.3g} %", "note": None}
    if abs(difference) > max(half, band):
        verdict = rise if difference > 0 else _OPPOSITE[rise]
        return {"verdict": verdict, "note": None}
    note = "the interval is too wide: repeat more, or measure longer"
    return {"verdict": "inconclusive", "note": note}


def _figure(summary: pd.Series, figure: str) -> float | None:
    """Returns a figure of COMPARED of one run; None where the run does not have it."""
    if figure == "memory":
        figure = "cuda_allocated_peak_gib"
        if not summary[figure]:  # None without a GPU, and 0 where a CPU computes beside one
            figure = "rss_peak_gib"
    value: float | None = summary[figure]
    return value


def _differing(runs: Sequence[Run], allowed: set[str]) -> list[str]:
    """Returns the parts of the runs' identities that differ.

    Raises ValueError if one of them is not `allowed`.
    """
    identities = [_identity(run.record) for run in runs]
    first, last = identities[0], identities[-1]
    differing = []
    for part, value in first.items():
        is_alike = all(identity[part] == value for identity in identities)
        if not is_alike:
            differing.append(part)
    refused = tuple(part for part in differing if part not in allowed)
    if refused:
        both = "; ".join(f"{part}: {_both_words(first[part], last[part])}" for part in refused)
        raise ValueError(
            f"the runs differ in {', '.join(refused)} ({both}); allow={refused!r} compares anyway"
        )
    return differing


def _both_words(first: Any, last: Any) -> str:
    """Two values that differ; of two records the fields that differ."""
    if not (isinstance(first, dict) and isinstance(last, dict)):
        return f"{first} and {last}"
    fields = [
        f"{name} {first.get(name)} and {last.get(name)}"
        for name in dict.fromkeys([*first, *last])
        if first.get(name) != last.get(name)
    ]
    return ", ".join(fields)


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what must be alike in runs that are compared."""
    spec = record["spec"]
    machine = {}
    for name in _MACHINE:
        value = record["machine"].get(name)
        if isinstance(value, float):
            # The kernel keeps memory for itself, and its amount differs between boots.
            value = round(value, 1)
        machine[name] = value
    return {
        "machine": machine,
        "model": spec["target"]["model"],
        "workload": spec["workload"],
        "arrivals": spec["arrivals"],
        "api": spec.get("api", "benchmark"),
    }


def _suspects(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    differing: Sequence[str] = (),
) -> Iterator[str]:
    """Yields what differs between two records and could explain a difference.

    Each difference reads "part.name: a -> b".
    """
    for part in ("target", "packages", "machine", "git"):
        left, right = _part(a, part), _part(b, part)
        for name in sorted(left.keys() | right.keys()):
            if name.startswith(_NO_SUSPECTS):
                continue
            if left.get(name) != right.get(name):
                yield f"{part}.{name}: {left.get(name)} -> {right.get(name)}"
    for part in differing:
        yield f"{part} differs, as allowed"


def _part(record: Mapping[str, Any], part: str) -> dict[str, Any]:
    fields = record["spec"] if part == "target" else record
    return fields[part] or {}


@dataclass(frozen=True, repr=False)
class StudyComparison(ShownInCell):
    """How several studies compare with the first. `str()` has the answer about the last.

    - `table`: a row for each later study, load and figure. It has `ratio` to the first study, `low`
      and `high` of its interval, `verdict` and `note`.
    - `changes`: for each later study, the packages that differ from the study before.
    - `suspects`: what else differs between the first and the last study.
    - `verdict`, `answer`: of the last study.
    - `verdicts`: of each later study.
    - `path`: the folder of the last study.
    - `passed_over`: for each invalid study before the first of `studies`, the reason.
    - `busy`: what other work took beside the runs of the first and the last study, in a sentence;
      None: too little to matter.
    """

    table: pd.DataFrame
    studies: tuple[str, ...]
    changes: dict[str, tuple[str, ...]]
    suspects: tuple[str, ...]
    verdict: str
    answer: str
    verdicts: dict[str, str]
    path: Path
    passed_over: dict[str, str] = field(default_factory=dict)
    busy: str | None = None

    @property
    def last(self) -> pd.DataFrame:
        """The rows of the last study."""
        return self.table[self.table["study"] == self.studies[-1]]

    def __str__(self) -> str:
        # 1) The verdict on the last study, and the figures that lead to it.
        lines = [f"{self.studies[-1]} against {self.studies[0]}: {self.verdict}"]
        _, causes = _overall(self.last)
        reasons = [_reason(row) for row in causes.to_dict("records")]
        lines += [f"- {reason}" for reason in dict.fromkeys(reasons)]

        if self.busy is not None:
            lines.append(self.busy)
        for name, reason in self.passed_over.items():
            lines.append(f"{name} is no baseline, as it is invalid: {reason}")

        # 2) What the figures leave open, and why.
        beside = _open_beside(self.last)
        if len(beside):
            names = dict.fromkeys(FIGURES[figure] for figure in beside["figure"])
            lines.append(f"Left open by these runs: {', '.join(names)}")
        if self.verdict == "inconclusive" and self.last["ratio"].notna().any():
            lines.append(
                "Measure more runs, or longer ones: chance alone may explain the difference."
            )
        if ONE_RUN in " ".join(self.last["note"].dropna()):
            lines.append(f"Take care: {ONE_RUN}.")
        if self.verdict in ("worse", "better") and self.suspects:
            lines.append(f"Possible causes: {'; '.join(self.suspects)}")

        # 3) The studies between the first and the last.
        earlier = [f"{name}: {self.verdicts[name]}" for name in self.studies[1:-1]]
        if earlier:
            lines.append(f"Earlier, against {self.studies[0]}: {'; '.join(earlier)}")
        lines.append(f"verdict.json and the figures are in {self.path}")
        return "\n".join(lines)

    def _view(self) -> CellView:
        rows = []
        for row in self.last.to_dict("records"):
            ratio = words(row["ratio"], (row["low"], row["high"]), "times")
            figure = f"{FIGURES[row['figure']]}, {row['load']}"
            rows.append((figure, row["verdict"], ratio, _note(row)))
        return CellView(str(self), rows, head=("figure", "verdict", "ratio", "note"))

    def to_json(self) -> str:
        """Returns what a report or another program needs to know of the last study."""
        figures = self.last.drop(columns="study").to_json(orient="records")
        fields = {
            "study": self.studies[-1],
            "against": self.studies[0],
            "passed_over": self.passed_over,
            "verdict": self.verdict,
            "answer": self.answer,
            "suspects": self.suspects,
            "busy": self.busy,
            "figures": json.loads(figures),
        }
        return json.dumps(fields, indent=2) + "\n"

    def save(self) -> Path:
        """Writes verdict.json into the last study's folder and returns its path."""
        path = self.path / "verdict.json"
        path.write_text(self.to_json(), encoding="utf-8")
        return path

    def raise_if_worse(self) -> None:
        """Raises RuntimeError if the last study is worse than the first, or invalid.

        A job by the clock shows the error alone, so it also says what else differs, and what next.
        """
        if self.verdict not in ("worse", "invalid"):
            return
        said = [self.answer, self.busy]
        if self.verdict == "worse":
            causes = "; ".join(self.suspects) or "nothing else is known to differ"
            said += [f"Possible causes: {causes}", "To be sure, measure both again, in turns"]
        said.append(f"The figures are in {self.path}")
        raise RuntimeError(". ".join(one.rstrip(".") for one in said if one))


def compare_studies(
    studies: Sequence[Study],
    *,
    allow: Iterable[str] = (),
    min_effect: float | None = None,
) -> StudyComparison:
    """Returns how every study compares with the first valid one, load by load.

    Studies before the first valid one are passed over. If no study but the last is valid, the
    first stays the baseline. A load that is invalid in the baseline alone has the verdict
    "inconclusive". An invalid run does not count if the same point was measured again and is valid.

    Runs of one load (its label, or else its arrivals) are repetitions. The intervals of one study
    hold at 95 % for all of its loads together: those of the time in the model by themselves, and
    those of all other figures together; see `compare`. The verdict is the first of these that is
    true:

    - "invalid": a run of the last study is invalid, or it lacks a load of the first.
    - "worse": a figure is slower, or takes more memory.
    - "inconclusive": a figure is inconclusive. Unknown memory does not count. Where a load's time
      in the model is known, it alone counts: the load's other figures hold more chance.
    - "better": a figure is faster, or takes less memory.
    - "no difference beyond 2 %", or 5 %: anything else.

    Raises ValueError as `compare` does, and for fewer than two studies, two of one name, or no load
    in common.
    """
    # 1) Find the baseline: the first valid study.
    names = _study_names(studies)
    reasons = [study_fault(study) for study in studies]
    valid_places = [place for place, reason in enumerate(reasons[:-1]) if reason is None]
    first = valid_places[0] if valid_places else 0
    passed_over = {}
    for name, reason in zip(names[:first], reasons[:first], strict=True):
        passed_over[name] = str(reason)
    names = names[first:]
    studies = studies[first:]

    # 2) Compare each later study with it.
    loads = [_by_load(study) for study in studies]
    allowed = tuple(allow)

    rows = []
    suspects: tuple[str, ...] = ()
    for name, study_loads in zip(names[1:], loads[1:], strict=True):
        if not loads[0].keys() & study_loads.keys():
            both = f"{', '.join(loads[0])} and {', '.join(study_loads)}"
            raise ValueError(
                f"studies: {names[0]} and {name} have no load in common ({both}): "
                "give loads that are alike the same label"
            )
        compared, suspects = _compare_loads(
            (names[0], name),
            loads[0],
            study_loads,
            allowed,
            min_effect,
        )
        rows += compared

    # 3) What changed from each study to the next.
    changes = {}
    last_runs = [study.runs[-1] for study in studies]
    for (before, after), name in zip(pairwise(last_runs), names[1:], strict=True):
        changes[name] = tuple(_changed_packages(before, after))

    # 4) The verdict on the last study.
    table = pd.DataFrame(rows, columns=_COLUMNS).astype(dict.fromkeys(_NUMBERS, float))
    verdicts = {name: _overall(table[table["study"] == name])[0] for name in names[1:]}
    verdict, causes = _overall(table[table["study"] == names[-1]])
    answer = f"{names[-1]} against {names[0]}: {verdict}"
    causes_in_words = dict.fromkeys(_reason(row) for row in causes.to_dict("records"))
    if causes_in_words:
        answer += f": {'; '.join(causes_in_words)}"
    compared_runs = [*_runs_that_count(studies[0]), *_runs_that_count(studies[-1])]
    return StudyComparison(
        table=table,
        studies=names,
        changes=changes,
        suspects=suspects,
        verdict=verdict,
        answer=answer,
        verdicts=verdicts,
        path=studies[-1].path,
        passed_over=passed_over,
        busy=busy_sentence([dict(run.summary()) for run in compared_runs]),
    )


def comparison_fault(baseline: Study, other: Study) -> str | None:
    """Returns why two studies can't be compared: other machines, models or loads; else None."""
    loads, other_loads = _by_load(baseline), _by_load(other)
    common = loads.keys() & other_loads.keys()
    if not common:
        return f"no load in common ({', '.join(loads)} and {', '.join(other_loads)})"
    for load in sorted(common):
        try:
            _differing([*loads[load], *other_loads[load]], set())
        except ValueError as error:
            reason, *_ = str(error).split("; allow=")
            return reason
    return None


def study_fault(study: Study) -> str | None:
    """Returns why a study is invalid, with the load that it shows in; None if it is valid."""
    for load, runs in _by_load(study).items():
        reason = _first_fault(runs)
        if reason is not None:
            return f"{load}: {reason}"
    return None


def _first_fault(runs: Sequence[Run]) -> str | None:
    """Returns why the first invalid run of `runs` is invalid; None if all are valid."""
    for run in runs:
        summary = run.summary()
        if not summary["valid"]:
            return str(summary["invalid_reason"])
    return None


def _runs_that_count(study: Study) -> list[Run]:
    """Returns the runs of a study, less each invalid one whose point was measured again."""
    points = [json.dumps(run.record.get("point"), sort_keys=True) for run in study.runs]
    valid_points = set()
    for run, point in zip(study.runs, points, strict=True):
        if run.summary()["valid"]:
            valid_points.add(point)
    counting = []
    for run, point in zip(study.runs, points, strict=True):
        has_point = run.record.get("point") is not None
        was_repaired = has_point and point in valid_points and not run.summary()["valid"]
        if not was_repaired:
            counting.append(run)
    return counting


def _study_names(studies: Sequence[Study]) -> tuple[str, ...]:
    """Returns a name for each study.

    If two have the same name, the folder above each study is part of its name. Raises ValueError if
    there are fewer than two studies, or if two names are still the same.
    """
    names = tuple(study.path.name for study in studies)
    if len(set(names)) < len(names):
        names = tuple(f"{study.path.parent.name}/{study.path.name}" for study in studies)
    if len(studies) < 2 or len(set(names)) < len(names):
        raise ValueError(
            "studies: give two or more of different names, the oldest first, "
            f"not {', '.join(names)}"
        )
    return names


def _compare_loads(
    names: tuple[str, str],
    baseline: Mapping[str, Sequence[Run]],
    loads: Mapping[str, Sequence[Run]],
    allowed: tuple[str, ...],
    min_effect: float | None,
) -> tuple[list[dict[Any, Any]], tuple[str, ...]]:
    """Returns the rows of one study against the first one's loads, and the suspects.

    `names` are those of the first study and of this one.
    """
    first, name = names
    rows: list[dict[Any, Any]] = []
    suspects: tuple[str, ...] = ()
    for load, runs in baseline.items():
        head = {"study": name, "load": load}
        # 1) A load that the study lacks.
        if load not in loads:
            rows.append({**head, "verdict": "invalid", "note": "this load was not measured"})
            continue

        # 2) A load that is invalid in the first study alone.
        fault = _first_fault(runs)
        if fault is not None and _first_fault(loads[load]) is None:
            note = f"nothing to compare with, as {first} is invalid: {fault}"
            rows.append({**head, "verdict": "inconclusive", "note": note})
            continue

        # 3) The comparison of a load that both have.
        try:
            found = compare(
                runs,
                loads[load],
                allow=allowed,
                min_effect=min_effect,
                comparisons=len(baseline),
            )
        except ValueError as error:
            raise ValueError(f"{name}, {load}: {error}") from error
        suspects = found.suspects

        # 4) A row for each figure.
        for row in found.table.reset_index().to_dict("records"):
            low, high = row.pop("interval") or (None, None)
            rows.append({**head, "low": low, "high": high, **row})
    return rows, suspects


def _by_load(study: Study) -> dict[str, list[Run]]:
    """Returns the runs of each load.

    A load is named by its label or arrivals, and by the settings that vary within the study.
    """
    counting = _runs_that_count(study)
    targets = [run.spec["target"] for run in counting]
    varied = [key for key in _SETTINGS if len({str(target.get(key)) for target in targets}) > 1]
    loads: dict[str, list[Run]] = {}
    for run, target in zip(counting, targets, strict=True):
        name = run_words(run.spec, digits=9)
        settings = [f"{key}={target.get(key)}" for key in varied]
        loads.setdefault(" ".join([name, *settings]), []).append(run)
    return loads


def _changed_packages(before: Run, after: Run) -> Iterator[str]:
    """Yields the packages that changed, as "torch: 2.12 -> 2.13"."""
    for suspect in _suspects(before.record, after.record):
        if suspect.startswith("packages."):
            yield suspect.removeprefix("packages.")


def _overall(last: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Returns the verdict of a study and the rows that lead to it.

    Memory and a time in the model that are not known do not make a verdict inconclusive, nor do
    figures that are inconclusive beside a known time in the model.
    """
    is_extra = last["figure"].isin(["memory", SERVICE])
    is_unknown = last["ratio"].isna() & (last["verdict"] != "invalid")
    known = last[~(is_extra & is_unknown)]
    counts = known.drop(index=_open_beside(known).index)
    for verdict, causes in _CAUSES.items():
        rows = counts[counts["verdict"].isin(causes)]
        if len(rows):
            return verdict, rows
    return counts["verdict"].iloc[0], counts[counts["figure"] == SERVICE]


def _open_beside(last: pd.DataFrame) -> pd.DataFrame:
    """Returns the inconclusive rows of loads whose time in the model is known."""
    is_service = last["figure"] == SERVICE
    loads = last["load"][is_service & last["ratio"].notna()]
    is_open = last["verdict"] == "inconclusive"
    return last[is_open & ~is_service & last["load"].isin(loads)]


def _reason(row: Mapping[Any, Any]) -> str:
    """Returns in words what one row adds to the verdict."""
    is_about_load = pd.isna(row["figure"])
    if row["verdict"] == "invalid" or is_about_load:
        return f"{row['load']}: {row['note']}"
    figure = f"{row['load']}: {FIGURES[row['figure']]}"
    if pd.isna(row["ratio"]):
        return f"{figure} is not known, as {row['note']}"
    interval = row["low"], row["high"]
    return f"{figure} {words(row['ratio'], interval, 'times')}"
