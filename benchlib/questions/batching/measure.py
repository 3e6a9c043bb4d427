"""Sends the same requests to servers of all policies, and simulates what their step times promise.

Knows servers, loads and the forecast. Ignorant of what the runs show (judge.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchlib.load.arrivals import OpenLoop
from benchlib.load.workload import Workload
from benchlib.questions.batching.forecast import predict_latency
from benchlib.run import Point, run_load
from benchlib.study.store import Run
from benchlib.sweeps import LOADED_SHARE, sweep

if TYPE_CHECKING:
    import pandas as pd

    from benchlib.serving.server import Server

STUDY = "batching"
LEAST_REQUESTS = 5
"""A run is at least as long as this many requests take to arrive, however small the budget."""

SIMULATED_REQUESTS = 500
SIMULATED_LOADS = (0.1, 0.3, 0.5, 0.65, 0.8, 0.9)
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


def send_rush(
    servers: Mapping[str, Server],
    workload: Workload,
    *,
    rate: float,
    requests: int,
    results: str | os.PathLike[str] | None = None,
) -> dict[str, Run]:
    """Returns one run for each server, by its name.

    All servers get the same `requests` at the same moments, `rate` a second.
    """
    runs = {}
    for name, server in servers.items():
        run = run_load(
            server,
            OpenLoop(rate),
            workload,
            requests=requests,
            label=f"rush-{name}",
            study=STUDY,
            results=results,
        )
        assert isinstance(run, Run)
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
    # 1) Each run's share of the budget.
    cases = [(name, rate) for rate in rates for name in servers]
    share_s = LOADED_SHARE * 60 * budget_min / (len(cases) * repeat)

    # 2) A point for each server and rate.
    points = []
    for name, rate in cases:
        points.append(
            Point(
                OpenLoop(rate),
                workload,
                servers[name],
                duration_s=max(share_s, LEAST_REQUESTS / rate),
                label=f"{name}-{rate:.3g}",
            )
        )
    study = sweep(
        points,
        study=STUDY,
        repeat=repeat,
        budget_min=budget_min,
        resume=False,
        results=results,
    )
    return study.runs


def predict_gains(
    spec: Mapping[str, Any], workload: Workload, policies: Iterable[str]
) -> pd.DataFrame:
    """Returns simulated mean latencies in seconds, with a column for each policy.

    There is a row for each rate (requests/s, the index). The rates are SIMULATED_LOADS of what
    serial can make by the step times in `spec`. `spec` is that of a server that measured batches.
    """
    import pandas as pd

    serial_s = _alone_s(spec, workload)
    rows = {}
    for load in SIMULATED_LOADS:
        requests = _simulated_requests(workload, load / serial_s)
        means_s = {}
        for name in policies:
            means_s[name] = predict_latency(requests, spec, batching=name).mean()
        rows[load / serial_s] = means_s
    return pd.DataFrame.from_dict(rows, orient="index")


def predict_cases(servers: Mapping[str, Server], workload: Workload) -> pd.DataFrame:
    """Returns simulated mean latencies as multiples of serial's, with a column for each policy.

    There is a row for each case. The first case has the highest of SIMULATED_LOADS. Each of the
    others changes one thing about it.
    """
    import pandas as pd

    measured = servers["continuous"].spec
    # The serial server measured single requests only, so by its spec a batch costs their sum.
    one_by_one = servers["serial"].spec
    highest = max(SIMULATED_LOADS)
    busy = _simulated_requests(workload, highest / _alone_s(measured, workload))
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
        means_s = {}
        for name in servers:
            means_s[name] = predict_latency(requests, spec, batching=name).mean()
        rows[case] = {name: mean_s / means_s["serial"] for name, mean_s in means_s.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def check_forecast(runs: Iterable[Run]) -> pd.DataFrame:
    """Returns the mean latency of runs beside the mean latency that their own step times predict.

    There is a row for each rate and policy, with `measured_s` and `predicted_s`. `off_percent` is
    how far the prediction is off.
    """
    import pandas as pd

    rows = [
        {
            "requests_per_s": run.spec["arrivals"]["rate"],
            "batching": run.spec["target"]["batching"],
            "measured_s": run.requests["latency_s"].mean(),
            "predicted_s": predict_latency(run.requests, run.spec["target"]).mean(),
        }
        for run in runs
    ]
    table = pd.DataFrame(rows).groupby(["requests_per_s", "batching"]).mean()
    off = table["predicted_s"] / table["measured_s"] - 1
    return table.assign(off_percent=100 * off)


def _alone_s(spec: Mapping[str, Any], workload: Workload) -> float:
    """Returns the mean seconds of a request that has the server to itself."""
    hours_apart = _requests_every(workload, 1e4)
    return float(predict_latency(hours_apart, spec, batching="serial").mean())


def _requests_every(workload: Workload, gap_s: float) -> pd.DataFrame:
    import pandas as pd

    requests = pd.DataFrame([workload.request(index) for index in range(SIMULATED_REQUESTS)])
    return requests.assign(scheduled_s=gap_s * requests.index)


def _simulated_requests(workload: Workload, rate: float) -> pd.DataFrame:
    """Returns at most SIMULATED_REQUESTS requests at random moments, `rate` a second on average."""
    # The schedule is longer than the requests need on average: chance then leaves hardly any out.
    moments_s = OpenLoop(rate).schedule(1.2 * SIMULATED_REQUESTS / rate, seed=0)
    requests = _requests_every(workload, 0.0)
    count = min(len(requests), len(moments_s))
    return requests[:count].assign(scheduled_s=moments_s[:count])
