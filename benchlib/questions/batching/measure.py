"""Sends the same requests to servers of all policies, and simulates what their step times promise.

Knows servers, loads and the forecast. Ignorant of what the runs show (judge.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchlib.budget import Budget
from benchlib.load.arrivals import ClosedLoop, OpenLoop
from benchlib.load.workload import Workload
from benchlib.printing import print_line
from benchlib.questions.batching.calibrated import LOADS, calibrate_policies
from benchlib.questions.batching.forecast import predict_latency
from benchlib.questions.batching.parts import (
    CLOSED,
    LEAST_REQUESTS,
    BatchingPlan,
    RateRuns,
)
from benchlib.run import Point, run_load
from benchlib.study.store import Run
from benchlib.study.wording import number, per_second
from benchlib.sweeps import LOADED_SHARE, sweep

if TYPE_CHECKING:
    import pandas as pd

    from benchlib.queueing.estimates import Calibration
    from benchlib.serving.server import Server

STUDY = "batching"
RUSH_LOAD = 2.0
"""In the rush, requests come so many times as fast as serial can serve them."""

CLOSED_PATIENCE = 1.5
"""The closed run ends after so many times the seconds that were planned for its images."""

SIMULATED_REQUESTS = 20_000
"""At 90 % of serial's throughput, the means of so many requests are within some 5 %."""
LONGEST_QUEUE = 500
"""A longer queue grows without end. At 90 % of its throughput, serial's has some ten requests."""
ALONE_REQUESTS = 500
"""So many requests give what one takes alone."""
SIMULATED_LOADS = LOADS
"""Shares of serial's throughput. From 1 on, its queue grows without end, and a ratio says nothing."""

NO_GAIN = "if batches gained nothing"


def mixed_workload(showcase: Mapping[str, Any]) -> Workload:
    """Returns requests of the model's own size, whose number of steps varies at random.

    The numbers go from a fifth of the model's own number to twice that number, each as likely.
    Batching would have nothing to arrange among equal requests.
    """
    own_steps = showcase["num_inference_steps"]
    steps = [max(1, round(fifths * own_steps / 5)) for fifths in range(1, 11)]
    return Workload(**{**showcase, "num_inference_steps": steps})


def measured_images_per_s(run: Run) -> float:
    """Returns the throughput of a run.

    Raises RuntimeError with the reason if the throughput is not known.
    """
    summary = run.summary()
    throughput = summary["throughput_images_per_s"]
    if not throughput:
        reason = summary["invalid_reason"] or "no image was finished in the time measured"
        raise RuntimeError(f"{run.path}: the throughput is not known: {reason}")
    return float(throughput)


def plan_batching(
    servers: Mapping[str, Server],
    workload: Workload,
    *,
    budget: Budget,
    profile: str,
    rates: Sequence[float] | None = None,
    requests: int = 20,
    repeat: int = 3,
) -> BatchingPlan:
    """Prints and returns what is measured in what is left of `budget`, by the servers' step times.

    In the profile "full" the closed run is three times as long, and the comparison has two loads.
    `rates` (requests/s) replaces the profile's loads. The rush wants `requests`, and the comparison
    `repeat` repetitions.
    """
    # 1) What an image takes, alone and in a rush.
    spec = servers["continuous"].spec
    image_s = _alone_s(spec, workload)
    rush = _simulated_requests(workload, RUSH_LOAD / image_s, requests)
    rush_s = 0.0
    for name in servers:
        done_s = rush["scheduled_s"] + predict_latency(rush, spec, batching=name)
        rush_s += float(done_s.max())

    # 2) The plan.
    is_full = profile == "full"
    plan = BatchingPlan(
        budget=budget,
        image_s=image_s,
        rush_image_s=rush_s / len(rush),
        loads=(0.5, 0.8) if is_full else (0.8,),
        rates=rates,
        closed_images=3 * requests if is_full else requests,
        rush_requests=requests,
        repeat=repeat,
        policies=len(servers),
    )
    print_line(plan)
    return plan


def fill_serial(
    server: Server,
    workload: Workload,
    plan: BatchingPlan,
    *,
    results: str | os.PathLike[str] | None = None,
) -> tuple[Run, BatchingPlan]:
    """Returns a run of four users on the serial server, and the plan of the rest.

    It has as many images as are planned, or fewer where these take longer. The rest is planned by
    the throughput of this run. If that is not known, as after an interrupt, the rest is planned by
    the step times as before.
    """
    images = max(1, plan.images(CLOSED))
    run = run_load(
        server,
        ClosedLoop(users=4),
        workload,
        requests=images,
        duration_s=CLOSED_PATIENCE * images * plan.image_s,
        warmup_s=plan.closed_warmup_s,
        study=STUDY,
        results=results,
        budget=plan.budget,
    )
    assert isinstance(run, Run)
    summary = run.summary()
    throughput = summary["throughput_images_per_s"]
    if throughput and summary["valid"]:
        print_line(f"serial makes {per_second(throughput)}")
        return run, plan.after(CLOSED, 1 / throughput)
    foretold = number(plan.serial_images_per_s)
    print_line(f"serial makes {foretold} images/s by its step times: the run shows none")
    return run, plan.after(CLOSED)


def send_rush(
    servers: Mapping[str, Server],
    workload: Workload,
    *,
    rate: float,
    requests: int,
    budget: Budget | None = None,
    results: str | os.PathLike[str] | None = None,
) -> dict[str, Run]:
    """Returns one run for each server, by its name.

    All servers get the same `requests` at the same moments, `rate` a second. With a `budget` there
    may be no request, and then no run. A run that was interrupted is left out, and so are those
    after it.
    """
    if budget is not None and not requests:
        print_line("the rush is left out")
        return {}
    runs = {}
    for name, server in servers.items():
        if budget is not None and not budget.left_s:
            break
        run = run_load(
            server,
            OpenLoop(rate),
            workload,
            requests=requests,
            label=f"rush-{name}",
            study=STUDY,
            results=results,
            budget=budget,
        )
        assert isinstance(run, Run)
        if run.record["status"] != "finished":
            break
        runs[name] = run
    return runs


def compare_policies(
    servers: Mapping[str, Server],
    workload: Workload,
    *,
    rates: Sequence[float],
    budget_min: float,
    repeat: int,
    results: str | os.PathLike[str] | None = None,
) -> tuple[Run, ...]:
    """Returns runs of each server at each of `rates` (requests/s), `repeat` times.

    All of them take about `budget_min` minutes together. In each repetition all servers get the
    same requests at the same moments. A budget that is too small for all runs leaves the last ones
    out.
    """
    share_s = LOADED_SHARE * 60 * budget_min / (len(rates) * len(servers) * repeat)
    durations = tuple(max(share_s, LEAST_REQUESTS / rate) for rate in rates)
    comparison = RateRuns(tuple(rates), durations, repeat)
    return _compare(servers, workload, comparison, budget_min=budget_min, results=results)


def compare_planned(
    servers: Mapping[str, Server],
    workload: Workload,
    plan: BatchingPlan,
    *,
    results: str | os.PathLike[str] | None = None,
) -> tuple[Run, ...]:
    """Returns runs of each server at the rates that `plan` has time for.

    In each repetition all servers get the same requests at the same moments. What does not fit into
    the rest of the budget is left out, in words. An interrupt ends the runs; those that were
    finished are returned.
    """
    for line in plan.planned().left_out_lines():
        print_line(line)
    comparison = plan.comparison()
    if not comparison.rates:
        return ()
    runs = _compare(servers, workload, comparison, budget=plan.budget, results=results)
    return tuple(run for run in runs if run.record["status"] == "finished")


def _compare(
    servers: Mapping[str, Server],
    workload: Workload,
    comparison: RateRuns,
    **options: Any,
) -> tuple[Run, ...]:
    """Returns the runs of a comparison. `options` go to sweep()."""
    points = []
    for rate, duration_s in zip(comparison.rates, comparison.duration_s, strict=True):
        for name, server in servers.items():
            points.append(
                Point(
                    OpenLoop(rate),
                    workload,
                    server,
                    duration_s=duration_s,
                    label=f"{name}-{rate:.3g}",
                )
            )
    study = sweep(points, study=STUDY, repeat=comparison.repeat, resume=False, **options)
    return study.runs


def predict_gains(
    spec: Mapping[str, Any], workload: Workload, policies: Iterable[str]
) -> pd.DataFrame:
    """Returns simulated mean latencies in seconds, with a column for each policy.

    There is a row for each rate (requests/s, the index). The rates are SIMULATED_LOADS of what
    serial can make by the step times in `spec`. `spec` is that of a server that measured batches.
    A mean is infinite where a policy can't keep up with the rate.
    """
    import pandas as pd

    serial_s = _alone_s(spec, workload)
    # Each load has the same requests, at moments that are closer together where the load is higher.
    at_full_load = _simulated_requests(workload, 1 / serial_s, SIMULATED_REQUESTS)
    rows = {}
    for load in SIMULATED_LOADS:
        requests = at_full_load.assign(scheduled_s=at_full_load["scheduled_s"] / load)
        means_s = {name: _long_run_mean_s(requests, spec, name) for name in policies}
        rows[load / serial_s] = means_s
    return pd.DataFrame.from_dict(rows, orient="index")


def predict_cases(servers: Mapping[str, Server], workload: Workload) -> pd.DataFrame:
    """Returns simulated mean latencies as multiples of serial's, with a column for each policy.

    There is a row for each case. The first case has the highest of SIMULATED_LOADS. Each of the
    others changes one thing about it. A value is infinite where a policy can't keep up.
    """
    import pandas as pd

    measured = servers["continuous"].spec
    # The serial server measured single requests only, so by its spec a batch costs their sum.
    one_by_one = servers["serial"].spec
    highest = max(SIMULATED_LOADS)
    busy_rate = highest / _alone_s(measured, workload)
    busy = _simulated_requests(workload, busy_rate, SIMULATED_REQUESTS)
    equal_steps = round(busy["num_inference_steps"].mean())
    cases = {
        f"at {100 * highest:g} % of serial's throughput": (busy, measured),
        "with a tenth of these requests": (
            busy.assign(scheduled_s=10 * busy["scheduled_s"]),
            measured,
        ),
        "with equal requests": (busy.assign(num_inference_steps=equal_steps), measured),
        NO_GAIN: (busy, one_by_one),
    }
    rows = {}
    for case, (requests, spec) in cases.items():
        means_s = {name: _long_run_mean_s(requests, spec, name) for name in servers}
        rows[case] = {name: mean_s / means_s["serial"] for name, mean_s in means_s.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def check_forecast(
    runs: Iterable[Run], calibrations: Mapping[str, Calibration] | None = None
) -> pd.DataFrame:
    """Returns the mean latency of runs beside that of simulations of the very same requests.

    There is a row for each rate and policy, with the mean latency `measured_s`:

    - `replayed_s`: simulated with services as they were under load, by the policy's calibration.
      NaN where it has none, or is refused. None for `calibrations` calibrates by these runs.
    - `warm_up_s`: simulated with the step times that the server measured at its start.
    - `off_percent`, `warm_up_off_percent`: how far each simulation is off.
    """
    import pandas as pd

    runs = list(runs)
    if calibrations is None:
        calibrations = calibrate_policies(runs)
    rows = []
    for run in runs:
        batching = run.spec["target"]["batching"]
        predicted_s = predict_latency(run.requests, run.spec["target"])
        rows.append(
            {
                "requests_per_s": run.spec["arrivals"]["rate"],
                "batching": batching,
                "measured_s": run.requests["latency_s"].mean(),
                "replayed_s": _replayed_mean_s(run, calibrations.get(batching)),
                "warm_up_s": predicted_s.mean(),
            }
        )
    keys = ["requests_per_s", "batching"]
    columns = [*keys, "measured_s", "replayed_s", "warm_up_s"]
    table = pd.DataFrame(rows, columns=columns).groupby(keys).mean()
    table["off_percent"] = 100 * (table["replayed_s"] / table["measured_s"] - 1)
    table["warm_up_off_percent"] = 100 * (table["warm_up_s"] / table["measured_s"] - 1)
    return table[["measured_s", "replayed_s", "off_percent", "warm_up_s", "warm_up_off_percent"]]


def _replayed_mean_s(run: Run, calibration: Calibration | None) -> float:
    if calibration is None or calibration.refusal is not None:
        return math.nan
    return float(calibration.replay(run)["simulated_s"].mean())


def _long_run_mean_s(requests: pd.DataFrame, spec: Mapping[str, Any], batching: str) -> float:
    """Returns the simulated mean latency in seconds; infinity where the queue grows without end."""
    latency_s = predict_latency(requests, spec, batching=batching, longest_queue=LONGEST_QUEUE)
    return math.inf if latency_s.isna().any() else float(latency_s.mean())


def _alone_s(spec: Mapping[str, Any], workload: Workload) -> float:
    """Returns the mean seconds of a request that has the server to itself."""
    requests = _requests(workload, ALONE_REQUESTS)
    hours_apart = requests.assign(scheduled_s=1e4 * requests.index)
    return float(predict_latency(hours_apart, spec, batching="serial").mean())


def _requests(workload: Workload, count: int) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([workload.request(index) for index in range(count)])


def _simulated_requests(workload: Workload, rate: float, count: int) -> pd.DataFrame:
    """Returns at most `count` requests at random moments, `rate` a second on average."""
    # The schedule is longer than the requests need on average: chance then leaves hardly any out.
    moments_s = OpenLoop(rate).schedule(1.2 * count / rate, seed=0)[:count]
    return _requests(workload, len(moments_s)).assign(scheduled_s=moments_s)
