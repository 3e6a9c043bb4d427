"""What requests would take on a server of ours, by the step times that it measured at its start.

Knows the policies' simulator. Ignorant of HTTP, of anything else that runs on the machine, and of requests that fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchlib.serving.engine.policies import Measured, SimulatedTask, make_policy, simulate

if TYPE_CHECKING:
    import pandas as pd


def predict_latency(
    requests: pd.DataFrame, spec: Mapping[str, Any], *, batching: str | None = None
) -> pd.Series:
    """Each request's latency in seconds, simulated on the step times in `spec`: a server's, or a run's "target".

    Of `requests`, such as a run's, the moment `scheduled_s`, size, steps and guidance are read (None: with guidance).
    `batching` is another policy than the server's own: then `spec` must be of one that measured batches. Raises
    ValueError for a size whose step times the spec does not tell.
    """
    known = Measured.of(spec.get("step_times") or {})
    columns = requests[["width", "height", "num_inference_steps", "scheduled_s"]].itertuples(
        index=False
    )
    guidance = (
        requests["guidance_scale"] if "guidance_scale" in requests else [None] * len(requests)
    )
    tasks = [
        SimulatedTask(
            (int(width), int(height)),
            1 if scale is not None and scale <= 1 else 2,
            int(steps),
            float(due_s),
        )
        for (width, height, steps, due_s), scale in zip(columns, guidance, strict=True)
    ]
    if missing := {task.size for task in tasks} - known.keys():
        raise ValueError(
            f"requests: spec has no step times of {sorted(missing)} pixels; serve(sizes=...) measures them"
        )
    most, wait_s = spec["max_batch_size"], spec["max_wait_ms"] / 1000
    policy = make_policy(
        batching or spec["batching"], known.__getitem__, max_batch_size=most, max_wait_s=wait_s
    )
    took_s = [one.done_s - one.arrived_s for one in simulate(policy, tasks, known.__getitem__)]
    return (
        0 * requests["scheduled_s"] + took_s
    )  # a Series with the index of `requests`, without importing pandas
