"""Runs whose truth is known: requests that went through a simulated lane with noise of our choice."""

from pathlib import Path

import numpy as np
import pandas as pd

from benchlib.load.workload import Workload
from benchlib.rows import ROW_DTYPES
from benchlib.serving.engine.compiled import Requests, cost_tables, simulate_requests
from benchlib.serving.engine.step_times import StepTimes, StepTimesBySize
from benchlib.study.store import Run

SIZE = (1024, 1024)
TIMES = StepTimes(
    step_s={1: 0.03, 2: 0.035, 4: 0.05, 8: 0.08, 16: 0.15},
    encode_s={1: 0.02, 2: 0.022, 8: 0.04},
    decode_s={1: 0.06, 2: 0.1, 4: 0.19},
)
UNDER_LOAD = {"step": 1.02, "encode": 1.1, "decode": 1.03}
"""How much longer calls take under load than at warm-up."""
GAP_S = 0.0003
AFTER_S = 0.02


def simulated_run(
    batching,
    *,
    rate,
    requests,
    steps=(20,),
    noise=0.01,
    seed=0,
    factors=None,
    policy=None,
    timed=True,
):
    """A run of `requests` Poisson arrivals at `rate`, through a lane of `policy` that says `batching`.

    `factors` are the requests' relative durations, else drawn with the deviation `noise`.
    """
    random = np.random.default_rng(seed)
    sent_s = np.cumsum(random.exponential(size=requests)) / rate
    workload = Workload(width=1024, height=1024, num_inference_steps=list(steps), seed=seed)
    number = np.array([workload.request(i)["num_inference_steps"] for i in range(requests)])
    if factors is None:
        factors = np.exp(noise * random.standard_normal(requests))
    planned = cost_tables([TIMES], 8)
    actual = planned.scaled(**UNDER_LOAD)
    policy = policy or batching
    done = simulate_requests(
        batching=policy,
        requests=Requests(sent_s, number, np.full(requests, 2), np.zeros(requests, int)),
        planned=planned,
        actual=actual,
        max_batch_size=8,
        max_wait_s=0.005,
        gap_s=GAP_S,
        factors=factors,
    )

    # Requests of one batch begin together, and are encoded and decoded in one call.
    members = np.ones(requests, int)
    if policy == "dynamic":
        _, batch, count = np.unique(done.begun_s, return_inverse=True, return_counts=True)
        members = count[batch]
    encode_s = actual.encode_s[0, members] * factors
    decode_s = actual.decode_s[0, members] * factors
    total_s = done.done_s - sent_s + AFTER_S / 2
    latency_s = total_s + AFTER_S / 2 * random.uniform(0.9, 1.1, requests)
    queue_s = done.begun_s - sent_s
    parts = {
        "queue_s": queue_s,
        "encode_s": encode_s,
        "denoise_s": done.denoise_s,
        "decode_s": decode_s,
        "wait_s": total_s - queue_s - encode_s - done.denoise_s - decode_s,
        "total_s": total_s,
        "batch_size": done.batch_size,
        "image_s": np.zeros(requests),
    }
    columns = {
        "index": np.arange(requests),
        "request_id": [str(i) for i in range(requests)],
        "phase": ["measure"] * requests,
        "scheduled_s": sent_s,
        "sent_s": sent_s,
        "done_s": sent_s + latency_s,
        "latency_s": latency_s,
        "http_status": np.full(requests, 200),
        "num_inference_steps": number,
        "guidance_scale": np.full(requests, 7.5),
        "width": np.full(requests, 1024),
        "height": np.full(requests, 1024),
    }
    if timed:
        columns |= parts
    nothing = [None] * requests
    frame = {
        name: pd.Series(columns.get(name, nothing), dtype=dtype)
        for name, dtype in ROW_DTYPES.items()
    }
    target = {"batching": batching if timed else None, "max_batch_size": 8, "max_wait_ms": 5.0}
    if timed:
        target["step_times"] = StepTimesBySize({SIZE: TIMES}).to_spec()
    spec = {"target": target, "arrivals": {"kind": "open_loop", "rate": rate}}
    spec["workload"] = workload.to_dict()
    record = {"spec": spec, "status": "finished", "outcome": {}}
    return Run(record, pd.DataFrame(frame), pd.DataFrame(), Path("no-folder"))
