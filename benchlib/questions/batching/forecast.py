"""Predicts latencies on a server of ours, from the step times that it measured at its start.

Knows the simulator of the policies. Ignorant of HTTP, of other work on the machine, and of requests
that fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchlib.serving.engine.policies import make_policy
from benchlib.serving.engine.simulate import SimulatedTask, simulate
from benchlib.serving.engine.step_times import StepTimesBySize

if TYPE_CHECKING:
    import pandas as pd


def predict_latency(
    requests: pd.DataFrame,
    spec: Mapping[str, Any],
    *,
    batching: str | None = None,
) -> pd.Series:
    """Returns each request's simulated latency in seconds, with the index of `requests`.

    `requests` has rows such as a run's. The simulation reads their `scheduled_s`, size, steps and
    guidance. A request without a guidance scale counts as guided. `spec` has the step times: it is
    a server's spec, or the "target" of a run's spec.

    `batching` names another policy than the server's own. The server must then have measured
    batches. Raises ValueError for a size without step times.
    """
    import pandas as pd

    step_times = StepTimesBySize.from_spec(spec.get("step_times") or {})
    tasks = _tasks(requests)
    missing = sorted({task.size for task in tasks} - step_times.keys())
    if missing:
        raise ValueError(
            f"requests: spec has no step times of {missing} pixels; serve(sizes=...) measures them"
        )
    policy = make_policy(
        batching or spec["batching"],
        step_times.__getitem__,
        max_batch_size=spec["max_batch_size"],
        max_wait_s=spec["max_wait_ms"] / 1000,
    )
    finished = simulate(policy, tasks, step_times.__getitem__)
    latency_s = [task.done_s - task.arrived_s for task in finished]
    return pd.Series(latency_s, index=requests.index, dtype=float)


def _tasks(requests: pd.DataFrame) -> list[SimulatedTask]:
    """Returns what the simulator needs to know of each request, in the order of the rows."""
    guidance: list[float | None] = [None] * len(requests)
    if "guidance_scale" in requests:
        guidance = requests["guidance_scale"].tolist()
    columns = requests[["width", "height", "num_inference_steps", "scheduled_s"]]
    tasks = []
    for (width, height, steps, due_s), scale in zip(
        columns.itertuples(index=False), guidance, strict=True
    ):
        is_guided = scale is None or not scale <= 1  # NaN is the server's default, which guides
        size = int(width), int(height)
        tasks.append(SimulatedTask(size, 2 if is_guided else 1, int(steps), float(due_s)))
    return tasks
