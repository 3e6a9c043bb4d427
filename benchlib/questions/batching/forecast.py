"""Predicts latencies on a server of ours, from the step times that it measured at its start.

Knows the compiled simulator of the policies. Ignorant of HTTP, of other work on the machine, and of
requests that fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from benchlib.queueing.given import check_one_card
from benchlib.queueing.unet_work import with_unet_work
from benchlib.serving.engine.compiled import Requests, cost_tables, simulate_requests
from benchlib.serving.engine.step_times import StepTimesBySize

if TYPE_CHECKING:
    import pandas as pd


def predict_latency(
    requests: pd.DataFrame,
    spec: Mapping[str, Any],
    *,
    batching: str | None = None,
    longest_queue: int | None = None,
) -> pd.Series:
    """Returns each request's simulated latency in seconds, with the index of `requests`.

    `requests` has rows such as a run's. The simulation reads their `scheduled_s`, size, steps,
    sampler, guidance and adapter. A request without a guidance scale counts as guided. `spec` has the step times: it is
    a server's spec, or the "target" of a run's spec.

    `batching` names another policy than the server's own. The server must then have measured
    batches. Where more than `longest_queue` requests wait, the simulation stops, and the latencies
    of those that are not done are NaN. Raises ValueError for a size without step times, and for a
    server of several replicas.
    """
    import pandas as pd

    # 1) Find the step times of each size.
    check_one_card("spec", spec)
    step_times = StepTimesBySize.from_spec(spec.get("step_times") or {})
    pairs = zip(requests["width"].astype(int), requests["height"].astype(int), strict=True)
    size_of_each = list(pairs)
    sizes = sorted(set(size_of_each))
    missing = [size for size in sizes if size not in step_times]
    if missing:
        raise ValueError(
            f"requests: spec has no step times of {missing} pixels; serve(sizes=...) measures them"
        )
    if not sizes:
        return pd.Series([], index=requests.index, dtype=float)

    # 2) Put the requests in their order of arrival.
    due_s = requests["scheduled_s"].to_numpy(dtype=float)
    order = np.argsort(due_s, kind="stable")
    places = np.array([sizes.index(size) for size in size_of_each])
    asked = with_unet_work(requests, spec)
    steps = asked["calls"].to_numpy(dtype=np.int64)
    rows = asked["rows"].to_numpy(dtype=np.int64)
    arriving = Requests(
        arrived_s=due_s[order],
        steps=steps[order],
        rows=rows[order],
        size=places[order],
        lora=_loras(requests)[order],
    )

    # 3) Simulate.
    policy = batching or spec["batching"]
    most = 1 if policy == "serial" else spec["max_batch_size"]
    costs = cost_tables([step_times[size] for size in sizes], most)
    simulated = simulate_requests(
        batching=policy,
        requests=arriving,
        planned=costs,
        actual=costs,
        max_batch_size=most,
        max_wait_s=spec["max_wait_ms"] / 1000,
        longest_queue=longest_queue or len(requests),
    )
    latency_s = np.empty(len(requests))
    latency_s[order] = simulated.done_s - simulated.arrived_s
    return pd.Series(latency_s, index=requests.index)


def _loras(requests: pd.DataFrame) -> Any:
    """A number for each adapter with its scale, and 0 for requests without one."""
    import pandas as pd

    if "lora" not in requests:
        return np.zeros(len(requests), dtype=np.int64)
    numbers, _ = pd.factorize(requests["lora"])  # -1 where there is none
    return numbers.astype(np.int64) + 1
