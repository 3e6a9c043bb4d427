"""What requests would take on a server of ours, by the step times that it measured at its start.

Knows the policies' simulator. Ignorant of HTTP, of anything else that runs on the machine, and of requests that fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchlib.serving.policies import SimulatedTask, Size, StepTimes, make_policy, simulate

if TYPE_CHECKING:
    import pandas as pd


def predict_latency(requests: pd.DataFrame, spec: Mapping[str, Any], *, batching: str | None = None) -> pd.Series:
    """Each request's latency in seconds, simulated on the step times in `spec`: a server's, or a run's "target".

    Of `requests`, such as a run's, the moment `scheduled_s`, size, steps and guidance are read (None: with guidance).
    `batching` is another policy than the server's own: then `spec` must be of one that measured batches. Raises
    ValueError for a size that the server did not measure, and where it does not tell step times.
    """
    if not (told := spec.get("step_times")):
        raise ValueError("spec holds no step_times: pass the spec of a server that serve() made")
    known = {size: _step_times(curves) for size, curves in told.items()}

    def times(size: Size) -> StepTimes:
        name = "{}x{}".format(*size)
        if name not in known:
            raise ValueError(
                f"requests: {name} pixels were not measured, only {', '.join(known)}; see serve(sizes=...)"
            )
        return known[name]

    policy = make_policy(
        batching or spec["batching"],
        times,
        max_batch_size=spec["max_batch_size"],
        max_wait_s=spec["max_wait_ms"] / 1000,
    )
    columns = ["width", "height", "num_inference_steps", "scheduled_s"]
    unguided = (
        requests["guidance_scale"].le(1).fillna(False) if "guidance_scale" in requests else [False] * len(requests)
    )
    tasks = [
        SimulatedTask((int(width), int(height)), 1 if alone else 2, int(steps), float(due_s))
        for (width, height, steps, due_s), alone in zip(
            requests[columns].itertuples(index=False), unguided, strict=True
        )
    ]
    finished = simulate(policy, tasks, times)
    return requests["scheduled_s"].astype(float) * 0 + [one.done_s - one.arrived_s for one in finished]


def _step_times(curves: Mapping[str, Mapping[str, float]]) -> StepTimes:
    return StepTimes(**{part: {int(n): s for n, s in curve.items()} for part, curve in curves.items()})
