"""What several runs say together: how far they agree, and whether two jobs differ.

Knows the records and summaries of finished runs. Ignorant of their rows, and beyond asking for them of how a run's
figures (statistics.py) and the quantiles (estimates.py) are found.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchlib.study import estimates
from benchlib.study.estimates import Interval

if TYPE_CHECKING:
    from benchlib.study.store import Run


def over_runs(
    values: Sequence[float], intervals: Sequence[Interval] = ()
) -> tuple[float, Interval, float | None, str | None]:
    """Independent runs' figures as (mean, its 95 % t-interval from 5 runs on, coefficient of variation, warning).

    The warning says that the runs disagree more than their own `intervals` allow (Cochran's Q at 1 %, Biometrics 10,
    1954): something differs from run to run. Raises ValueError for no values.
    """
    if not len(values):
        raise ValueError("values: none; pass one figure of each run")
    mean, warning = float(np.mean(values)), None
    cv = float(np.std(values, ddof=1)) / mean if len(values) > 1 and mean else None
    known = [(value, pair) for value, pair in zip(values, intervals, strict=False) if pair and pair[1] > pair[0]]
    if len(known) > 1:
        weights = np.array([(2 * 1.96 / (high - low)) ** 2 for _, (low, high) in known])
        found = np.array([value for value, _ in known])
        q = float(weights @ (found - np.average(found, weights=weights)) ** 2)
        if q > estimates.chi_square_quantile(0.99, len(known) - 1):
            warning = f"{len(known)} runs disagree more than their intervals allow: something differs from run to run"
    return mean, estimates.runs_interval(values), cv, warning


@dataclass(frozen=True)
class Comparison:
    """`table`: per figure the mean of a and b, `ratio` b/a, its interval, a verdict and a note; `suspects`: what else
    differed between a and b; `verdict`: of the whole."""

    table: pd.DataFrame
    suspects: tuple[str, ...]
    verdict: str


COMPARED = {"latency_p50_s": "slower", "latency_p95_s": "slower", "throughput_images_per_s": "faster", "memory": "more"}
"""The figures that compare() compares, and what a rise of each is called."""
_OPPOSITE = {"slower": "faster", "faster": "slower", "more": "less"}


def compare(a: Sequence[Run], b: Sequence[Run], *, allow: Iterable[str] = (), min_effect: float = 0.05) -> Comparison:
    """How runs `b` differ from runs `a` of the same load, each a list of repetitions.

    Each figure's ratio b/a has Welch's t-interval of the logarithms over runs, at 95 % for all figures together
    (Bonferroni). "faster" or "slower" (memory: "less", "more"): the interval leaves out 1 and the ratio is beyond
    `min_effect`. "no difference beyond 5 %": the interval lies within `min_effect`. Else "inconclusive", as with one
    run on a side: how runs differ from one another (Kalibera & Jones, ISMM 2013) can't be seen in one. "invalid": a run
    is. Memory is the server's CUDA peak, or without one its RSS.

    Raises ValueError that names what differs where runs are not of one "machine", "model", "workload", "arrivals" and
    "api", unless `allow` names it. Other differences (packages, driver, commit, settings) are listed as suspects.
    """
    if not (a and b):
        raise ValueError("a and b: each must hold at least one run")
    if not min_effect > 0:
        raise ValueError(f"min_effect must be more than 0, not {min_effect}: 0.05 is 5 %")
    runs = [*a, *b]
    identities = [_identity(run.record) for run in runs]
    differing = [name for name in identities[0] if any(each[name] != identities[0][name] for each in identities)]
    if refused := [name for name in differing if name not in set(allow)]:
        told = "; ".join(f"{name}: {identities[0][name]} and {identities[-1][name]}" for name in refused)
        raise ValueError(f"the runs differ in {', '.join(refused)} ({told}); allow={tuple(refused)!r} compares anyway")
    summaries = [run.summary() for run in runs]
    invalid = next((each["invalid_reason"] for each in summaries if not each["valid"]), None)
    rows = []
    for name, rise in COMPARED.items():
        values = [_compared(each, name) for each in summaries]
        row = {"figure": name, "a": None, "b": None, "ratio": None, "interval": None, "verdict": "inconclusive"}
        if invalid:
            row |= {"verdict": "invalid", "note": invalid}
        elif any(value is None or value <= 0 for value in values):
            row["note"] = "a run does not carry this figure"
        else:
            row |= _ratio([float(v) for v in values if v], len(a), rise, min_effect)
        rows.append(row)
    table = pd.DataFrame(rows).set_index("figure")
    speeds = table.loc[[name for name in COMPARED if name != "memory"], "verdict"].tolist()
    order = ("invalid", "slower", "faster", "inconclusive")
    overall = next((verdict for verdict in order if verdict in speeds), speeds[0])
    return Comparison(table, tuple(_suspects(a[0].record, b[0].record, differing)), overall)


LATENCIES = ("latency_mean_s", "latency_p95_s")


def gains(runs: Iterable[Run], *, over: str = "serial") -> pd.DataFrame:
    """What other batching makes of the latency that requests at the same rates have with `over`, by repeated runs.

    Runs of one rate and seed were asked for the same at the same moments, so they are compared in pairs. A row for each
    `rate` (1/s), `batching` and `figure` (of LATENCIES) with `pairs`, how many had it; `ratio`, the geometric mean of
    theirs; `interval`, Student's t of the logarithms at 95 % each, None for one pair; and `verdict`: "lower" or
    "higher" where the interval leaves out 1, else "not shown". Runs that are not valid are left out.
    """
    found: dict[tuple[float, str, str, int], float] = {}
    for run in runs:
        summary, spec = run.summary(), run.spec
        for name in LATENCIES:
            if summary["valid"] and summary[name]:
                found[spec["arrivals"]["rate"], spec["target"]["batching"], name, spec["seed"]] = summary[name]
    logs: dict[tuple[float, str, str], list[float]] = {}
    for (rate, batching, name, seed), value in sorted(found.items()):
        if batching != over and (base := found.get((rate, over, name, seed))):
            logs.setdefault((rate, batching, name), []).append(math.log(value / base))
    rows = []
    for (rate, batching, name), values in logs.items():
        mean, n, interval, verdict = float(np.mean(values)), len(values), None, "not shown"
        if n > 1:
            half = estimates.t_quantile(0.975, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
            interval = math.exp(mean - half), math.exp(mean + half)
            verdict = "lower" if interval[1] < 1 else "higher" if interval[0] > 1 else verdict
        rows.append((rate, batching, name, n, math.exp(mean), interval, verdict))
    return pd.DataFrame(rows, columns=["rate", "batching", "figure", "pairs", "ratio", "interval", "verdict"])


def _ratio(values: list[float], split: int, rise: str, min_effect: float) -> dict[str, Any]:
    logs = np.log(values)
    sides = logs[:split], logs[split:]
    means = [float(np.exp(side.mean())) for side in sides]
    row: dict[str, Any] = {"a": means[0], "b": means[1], "ratio": means[1] / means[0]}
    if min(map(len, sides)) < 2:
        return row | {"note": "one run on a side: repeat it (5 times are good)"}
    parts = [float(side.var(ddof=1)) / len(side) for side in sides]
    band, difference = math.log1p(min_effect), float(sides[1].mean() - sides[0].mean())
    half = 0.0
    if sum(parts):
        df = sum(parts) ** 2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, sides, strict=True))
        half = estimates.t_quantile(1 - 0.025 / len(COMPARED), df) * math.sqrt(sum(parts))
    row["interval"] = math.exp(difference - half), math.exp(difference + half)
    if abs(difference) + half <= band:
        return row | {"verdict": f"no difference beyond {min_effect:.0%}"}
    if abs(difference) > max(half, band):
        return row | {"verdict": rise if difference > 0 else _OPPOSITE[rise]}
    return row | {"note": "the interval is too wide: repeat more, or measure longer"}


def _compared(summary: pd.Series, name: str) -> float | None:
    if name == "memory":
        name = "rss_peak_gib" if summary["cuda_allocated_peak_gib"] is None else "cuda_allocated_peak_gib"
    value: float | None = summary[name]
    return value


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    spec, machine = record["spec"], record["machine"]
    kept = ("cpu", "cores", "memory_gib", "gpu", "gpu_memory_gib")
    return {
        "machine": {key: round(v, 1) if isinstance(v := machine.get(key), float) else v for key in kept},
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
            if not name.startswith(("url", "load", "memory_before", "step_times")) and left.get(name) != right.get(
                name
            ):
                yield f"{part}.{name}: {left.get(name)} -> {right.get(name)}"
    yield from (f"{name} differs, as allowed" for name in differing)
