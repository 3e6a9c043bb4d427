"""What several runs say together: how far they agree, and whether two jobs differ.

Knows the records and summaries of finished runs. Ignorant of their rows, and beyond asking for them of how a run's
figures (statistics.py) and the quantiles (estimates.py) are found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchlib.study import intervals
from benchlib.study.store import check_names

if TYPE_CHECKING:
    from benchlib.study.store import Run, Study


@dataclass(frozen=True)
class Comparison:
    """`table`: per figure the mean of a and b, `ratio` b/a, its interval, a verdict and a note; `suspects`: what else
    differed between a and b; `verdict`: of the whole."""

    table: pd.DataFrame
    suspects: tuple[str, ...]
    verdict: str


COMPARED = {
    "latency_p50_s": "slower",
    "latency_p95_s": "slower",
    "throughput_images_per_s": "faster",
    "memory": "more",
}
"""The figures that compare() compares, and what a rise of each is called."""
FIGURES = {
    "latency_p50_s": "median latency", "latency_p95_s": "p95 latency", "throughput_images_per_s": "throughput",
    "memory": "memory",
}  # fmt: skip
"""What a reader is told that they are."""
_OPPOSITE = {"slower": "faster", "faster": "slower", "more": "less"}


def compare(
    a: Sequence[Run],
    b: Sequence[Run],
    *,
    allow: Iterable[str] = (),
    min_effect: float = 0.05,
    of: int = 1,
) -> Comparison:
    """How runs `b` differ from runs `a` of the same load, each a list of repetitions.

    Each figure's ratio b/a has Welch's t-interval of the logarithms over runs, at 95 % for all figures together, and
    for all `of` comparisons that are judged together (Bonferroni). "faster" or "slower" (memory: "less", "more"): the
    interval leaves out 1 and the ratio is beyond `min_effect`. "no difference beyond 5 %": the interval lies within
    `min_effect`. Else "inconclusive", as with one run on a side: how runs differ from one another (Kalibera & Jones,
    ISMM 2013) can't be seen in one. "invalid": a run is. Memory is the server's CUDA peak, or without one its RSS.

    Raises ValueError that names what differs where runs are not of one "machine", "model", "workload", "arrivals" and
    "api", unless `allow` names it. Other differences (packages, driver, commit, settings) are listed as suspects.
    """
    if not (a and b):
        raise ValueError("a and b: each must hold at least one run")
    if not min_effect > 0:
        raise ValueError(f"min_effect must be more than 0, not {min_effect}: 0.05 is 5 %")
    runs = [*a, *b]
    identities = [_identity(run.record) for run in runs]
    differing = [
        name
        for name in identities[0]
        if any(each[name] != identities[0][name] for each in identities)
    ]
    if refused := [name for name in differing if name not in set(allow)]:
        told = "; ".join(
            f"{name}: {identities[0][name]} and {identities[-1][name]}" for name in refused
        )
        raise ValueError(
            f"the runs differ in {', '.join(refused)} ({told}); allow={tuple(refused)!r} compares anyway"
        )
    summaries = [run.summary() for run in runs]
    invalid = next((each["invalid_reason"] for each in summaries if not each["valid"]), None)
    rows = []
    for name, rise in COMPARED.items():
        values = [_compared(each, name) for each in summaries]
        row = {
            "figure": name,
            "a": None,
            "b": None,
            "ratio": None,
            "interval": None,
            "verdict": "inconclusive",
        }
        if invalid:
            row |= {"verdict": "invalid", "note": invalid}
        elif any(value is None or value <= 0 for value in values):
            row["note"] = "a run does not carry this figure"
        else:
            row |= _ratio([float(v) for v in values if v], len(a), rise, min_effect, of)
        rows.append(row)
    table = pd.DataFrame(rows).set_index("figure")
    speeds = table.loc[[name for name in COMPARED if name != "memory"], "verdict"].tolist()
    order = ("invalid", "slower", "faster", "inconclusive")
    overall = next((verdict for verdict in order if verdict in speeds), speeds[0])
    return Comparison(table, tuple(_suspects(a[0].record, b[0].record, differing)), overall)


@dataclass(frozen=True)
class Series:
    """`table`: a row per study but the first, load and figure, with `ratio` to the first study, `low` and `high` of its
    interval, `verdict` and `note`; `changes`: packages that differ from the study before; `suspects`: what else differs
    between the first and the last; `verdict` and `answer`: of the last."""

    table: pd.DataFrame
    studies: tuple[str, ...]
    changes: dict[str, tuple[str, ...]]
    suspects: tuple[str, ...]
    verdict: str
    answer: str

    def to_json(self) -> str:
        """What a report or another program needs to know of the last study."""
        first, *_, last = self.studies
        rows = (
            self.table[self.table["study"] == last].drop(columns="study").to_json(orient="records")
        )
        told = {"study": last, "against": first, "verdict": self.verdict, "answer": self.answer}
        return (
            json.dumps({**told, "suspects": self.suspects, "figures": json.loads(rows)}, indent=2)
            + "\n"
        )


def compare_studies(
    studies: Sequence[Study], *, allow: Iterable[str] = (), min_effect: float = 0.05
) -> Series:
    """Every study against the first, load by load; runs of one load (label, or else arrivals) are its repetitions.

    The interval of each ratio is of 95 % for all loads and figures of a study together; see `compare`. `verdict` is
    "invalid" where a run is or where a load of the first study is missing in the last, else "worse" (slower, or more
    memory), "inconclusive", "better" or "no difference". Raises ValueError as `compare` does, and for fewer than two
    studies, two of one name, or no load in common.
    """
    names = tuple(study.path.name for study in studies)
    if len(set(names)) < len(names):
        names = tuple(f"{study.path.parent.name}/{study.path.name}" for study in studies)
    if len(studies) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"studies: give two or more of different names, the oldest first, not {', '.join(names)}"
        )
    allow, rows, changes, suspects = tuple(allow), list[dict[str, Any]](), {}, tuple[str, ...]()
    baseline = _by_load(studies[0])
    for before, study, name in zip(studies, studies[1:], names[1:], strict=False):
        loads, suspects = _by_load(study), ()
        if not baseline.keys() & loads.keys():
            told = f"{', '.join(baseline)} and {', '.join(loads)}"
            raise ValueError(
                f"studies: {names[0]} and {name} have no load in common ({told}): give like ones a label"
            )
        for load, runs in baseline.items():
            if load not in loads:
                rows.append(
                    {
                        "study": name,
                        "load": load,
                        "verdict": "invalid",
                        "note": "this load was not measured",
                    }
                )
                continue
            try:
                found = compare(
                    runs, loads[load], allow=allow, min_effect=min_effect, of=len(baseline)
                )
            except ValueError as error:
                raise ValueError(f"{name}, {load}: {error}") from error
            suspects = found.suspects
            for row in _records(found.table.reset_index()):
                low, high = row.pop("interval") or (None, None)
                rows.append({"study": name, "load": load, "low": low, "high": high} | row)
        of_packages = _suspects(before.runs[-1].record, study.runs[-1].record, [])
        changes[name] = tuple(
            s.removeprefix("packages.") for s in of_packages if s.startswith("packages.")
        )
    columns = ["study", "load", "figure", "a", "b", "ratio", "low", "high", "verdict", "note"]
    table = pd.DataFrame(rows, columns=columns).astype(
        dict.fromkeys(["a", "b", "ratio", "low", "high"], float)
    )
    last = table[table["study"] == names[-1]]
    verdict, which = _overall(last)
    told = "; ".join(dict.fromkeys(_words(row) for row in _records(which)))
    answer = f"{names[-1]} against {names[0]}: {verdict}" + (f": {told}" if told else "")
    return Series(table, names, changes, suspects, verdict, answer)


def _by_load(study: Study) -> dict[str, list[Run]]:
    """The runs of each load, called by its label or arrivals and by the settings that vary within the study."""
    targets = [run.spec["target"] for run in study.runs]
    kept = ("model", "device", "dtype", "recipe", "batching", "max_batch_size", "max_wait_ms")
    varied = [key for key in kept if len({str(target.get(key)) for target in targets}) > 1]
    loads: dict[str, list[Run]] = {}
    for run, target in zip(study.runs, targets, strict=True):
        name = check_names(study.path.name, run.spec)
        loads.setdefault(
            " ".join([name, *(f"{key}={target.get(key)}" for key in varied)]), []
        ).append(run)
    return loads


def _overall(last: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """The verdict of a study and the rows that make it; memory that is not known leaves nothing open."""
    known = last[
        (last["figure"] != "memory") | last["ratio"].notna() | (last["verdict"] == "invalid")
    ]
    for verdict, causes in {
        "invalid": ["invalid"], "worse": ["slower", "more"], "inconclusive": ["inconclusive"],
        "better": ["faster", "less"],
    }.items():  # fmt: skip
        if len(rows := known[known["verdict"].isin(causes)]):
            return verdict, rows
    return known["verdict"].iloc[0], known[:0]


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _words(row: dict[str, Any]) -> str:
    if row["verdict"] == "invalid":
        return f"{row['load']}: {row['note']}"
    interval = "" if pd.isna(row["low"]) else f" ({row['low']:.3g} to {row['high']:.3g})"
    ratio = "not known" if pd.isna(row["ratio"]) else f"{row['ratio']:.3g} times{interval}"
    return f"{row['load']}: {FIGURES[row['figure']]} {ratio}"


def _ratio(
    values: list[float], split: int, rise: str, min_effect: float, of: int
) -> dict[str, Any]:
    logs = np.log(values)
    sides = logs[:split], logs[split:]
    difference = float(sides[1].mean() - sides[0].mean())
    # Of the difference, not of the means: rounded otherwise, it may lie outside an interval of no width.
    row: dict[str, Any] = {"ratio": math.exp(difference)}
    row |= {name: float(np.exp(side.mean())) for name, side in zip("ab", sides, strict=True)}
    if min(map(len, sides)) < 2:
        return row | {"note": "one run on a side: repeat it (5 times are good)"}
    parts = [float(side.var(ddof=1)) / len(side) for side in sides]
    band, half = math.log1p(min_effect), 0.0
    if sum(parts):
        df = sum(parts) ** 2 / sum(
            part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True)
        )
        half = intervals.t_quantile(1 - 0.025 / (of * len(COMPARED)), df) * math.sqrt(sum(parts))
    row["interval"] = math.exp(difference - half), math.exp(difference + half)
    if abs(difference) + half <= band:
        return row | {"verdict": f"no difference beyond {min_effect:.0%}"}
    if abs(difference) > max(half, band):
        return row | {"verdict": rise if difference > 0 else _OPPOSITE[rise]}
    return row | {"note": "the interval is too wide: repeat more, or measure longer"}


def _compared(summary: pd.Series, name: str) -> float | None:
    if name == "memory":
        name = (
            "rss_peak_gib"
            if summary["cuda_allocated_peak_gib"] is None
            else "cuda_allocated_peak_gib"
        )
    value: float | None = summary[name]
    return value


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    spec, machine = record["spec"], record["machine"]
    kept = ("cpu", "cores", "memory_gib", "gpu", "gpu_memory_gib")
    return {
        "machine": {
            key: round(v, 1) if isinstance(v := machine.get(key), float) else v for key in kept
        },
        "model": spec["target"]["model"],
        "workload": spec["workload"],
        "arrivals": spec["arrivals"],
        "api": spec.get("api", "benchmark"),
    }


def _suspects(a: dict[str, Any], b: dict[str, Any], differing: list[str]) -> Iterable[str]:
    """What differs between two records and could explain a difference, as "part.name: a -> b"."""
    for part in ("target", "packages", "machine", "git"):
        left, right = (record["spec"] if part == "target" else record for record in (a, b))
        left, right = left[part] or {}, right[part] or {}
        for name in sorted(left.keys() | right.keys()):
            if not name.startswith(("url", "load", "memory_before", "step_times")) and left.get(
                name
            ) != right.get(name):
                yield f"{part}.{name}: {left.get(name)} -> {right.get(name)}"
    yield from (f"{name} differs, as allowed" for name in differing)
