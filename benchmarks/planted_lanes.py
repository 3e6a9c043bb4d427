"""Runs whose truth is known: requests that went through a simulated lane, with noise and faults.

Knows the policies' own simulation and the format of a run. Ignorant of estimates. The benchmark of
estimates (answers.py) and their tests share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchlib.load.workload import Workload
from benchlib.rows import ROW_DTYPES
from benchlib.serving.engine.compiled import Requests, Simulated, cost_tables, simulate_requests
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
MAX_BATCH_SIZE = 8
MAX_WAIT_S = 0.005
PLANNED = cost_tables([TIMES], MAX_BATCH_SIZE)
ACTUAL = PLANNED.scaled(**UNDER_LOAD)
LAST_FIRST = "last in, first out"


# ---- noise: the relative durations of `n` successive requests


def normal(random: np.random.Generator, n: int, *, sigma: float) -> np.ndarray:
    """Lognormal, which for a small `sigma` is as good as normal."""
    return np.exp(sigma * random.standard_normal(n))


def tailed(random: np.random.Generator, n: int) -> np.ndarray:
    """A deviation of 1 %, and an exponential tail of 3 %."""
    return normal(random, n, sigma=0.01) + 0.03 * random.exponential(size=n)


def bimodal(random: np.random.Generator, n: int) -> np.ndarray:
    """A deviation of 1 %; one image in ten takes 1.5 times as long."""
    is_long = random.random(n) < 0.1
    return normal(random, n, sigma=0.01) * np.where(is_long, 1.5, 1.0)


def wandering(random: np.random.Generator, n: int) -> np.ndarray:
    """A deviation of 2 %; each image has half of the last one's (an autoregression)."""
    steps = np.sqrt(1 - 0.5**2) * random.standard_normal(n)
    level = np.empty(n)
    last = random.standard_normal()
    for place, step in enumerate(steps):
        last = 0.5 * last + step
        level[place] = last
    return np.exp(0.02 * level)


NOISES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "1 %": lambda random, n: normal(random, n, sigma=0.01),
    "1 %, 3 % tail": tailed,
    "lognormal 10 %": lambda random, n: normal(random, n, sigma=0.1),
    "lognormal 30 %": lambda random, n: normal(random, n, sigma=0.3),
    "bimodal": bimodal,
    "AR(1) 2 %": wandering,
}


# ---- faults


@dataclass(frozen=True)
class Fault:
    """What is wrong with a run, beside its noise. All zeros and Nones are a run without a fault.

    `stall` is a pause in mean services, in the middle of the run. `slow_tenth` and `drift` are how
    much longer a tenth of the images take, or the last one beside the first. `leak` is how much
    longer an image takes for each request that it found, in its stages or (`leak_is_outside`) in
    the lane but in no stage. `client` is how late, in services, an answer in five is read.
    `policy` and `batch_size` are what served the requests, in place of what the server says.
    """

    stall: float = 0.0
    slow_tenth: float = 0.0
    drift: float = 0.0
    leak: float = 0.0
    leak_is_outside: bool = False
    client: float = 0.0
    policy: str | None = None
    batch_size: int = MAX_BATCH_SIZE


@dataclass(frozen=True)
class _Asked:
    """The requests of a run, and how they are served."""

    sent_s: np.ndarray
    steps: np.ndarray
    batching: str
    batch_size: int = field(default=MAX_BATCH_SIZE)

    def served(self, factors: np.ndarray) -> Simulated:
        """What becomes of the requests, with these relative durations."""
        number = len(self.sent_s)
        if self.batching == LAST_FIRST:
            return _last_first(self, factors)
        return simulate_requests(
            batching=self.batching,
            requests=Requests(self.sent_s, self.steps, np.full(number, 2), np.zeros(number, int)),
            planned=PLANNED,
            actual=ACTUAL,
            max_batch_size=self.batch_size,
            max_wait_s=MAX_WAIT_S,
            gap_s=GAP_S,
            factors=factors,
            longest_queue=20_000,
        )


def _last_first(asked: _Asked, factors: np.ndarray) -> Simulated:
    """One request at a time, of those present the one that came last."""
    # 1) Alone, each request takes what it takes in any order
    number = len(factors)
    hours_apart = 1e4 * np.arange(1.0, number + 1)
    alone = _Asked(hours_apart, asked.steps, "serial").served(factors)
    service_s = alone.done_s - alone.begun_s

    # 2) Take the last one that is there
    begun_s = np.zeros(number)
    waiting: list[int] = []
    arrived = 0
    now_s = 0.0
    for _ in range(number):
        if not waiting:
            now_s = max(now_s, asked.sent_s[arrived])
        while arrived < number and asked.sent_s[arrived] <= now_s:
            waiting.append(arrived)
            arrived += 1
        chosen = waiting.pop()
        begun_s[chosen] = now_s
        now_s += service_s[chosen]
    done_s = begun_s + service_s
    had_left = np.searchsorted(np.sort(done_s), asked.sent_s, side="right")
    return Simulated(
        arrived_s=asked.sent_s,
        begun_s=begun_s,
        done_s=done_s,
        denoise_s=alone.denoise_s,
        batch_size=alone.batch_size,
        calls=alone.calls,
        present=np.arange(number) - had_left,
        overflowed=False,
    )


def _with_fault(asked: _Asked, factors: np.ndarray, fault: Fault) -> np.ndarray:
    """The relative durations with the faults of the services; those of a leak are not among them."""
    number = len(factors)
    slow = factors * np.linspace(1, 1 + fault.drift, number)
    first = int(0.45 * number)
    slow[first : first + number // 10] *= 1 + fault.slow_tenth
    if fault.stall:
        # In a batch only the first request's duration counts: take one that begins by itself.
        served = asked.served(factors)
        _, firsts = np.unique(served.begun_s, return_index=True)
        found_none = np.flatnonzero(served.present[firsts] <= 0)
        candidates = firsts[found_none] if asked.batching == "continuous" else firsts
        if not len(candidates):
            candidates = firsts
        nearest = np.argmin(np.abs(candidates - number // 2))
        slow[candidates[nearest]] += fault.stall
    return slow


def _leaks(asked: _Asked, factors: np.ndarray, leak: float) -> np.ndarray:
    """How many times as long each request takes by a leak: it and the queue depend on each other."""
    times = np.ones(len(factors))
    if not leak:
        return times
    for _ in range(6):
        served = asked.served(factors * times)
        times = 1 + leak * served.present
    return times


# ---- runs


def simulated_run(
    batching: str,
    *,
    rate: float,
    requests: int,
    steps: Sequence[int] = (20,),
    noise: float | str = 0.01,
    seed: int = 0,
    factors: np.ndarray | None = None,
    policy: str | None = None,
    timed: bool = True,
    fault: Fault | None = None,
) -> Run:
    """A run of `requests` Poisson arrivals at `rate`, through a lane of `policy` that says `batching`.

    `factors` are the requests' relative durations, else drawn with `noise`: a deviation, or one of
    NOISES.
    """
    # 1) The requests, and what each would take
    fault = fault or Fault()
    random = np.random.default_rng(seed)
    sent_s = np.cumsum(random.exponential(size=requests)) / rate
    workload = Workload(width=1024, height=1024, num_inference_steps=list(steps), seed=seed)
    number = np.full(requests, steps[0])
    if len(steps) > 1:
        number = np.array([workload.request(i)["num_inference_steps"] for i in range(requests)])
    if factors is None:
        draw = NOISES[noise] if isinstance(noise, str) else NOISES["1 %"]
        factors = draw(random, requests)
        if not isinstance(noise, str):
            factors = factors ** (noise / 0.01)

    # 2) What became of them
    served_by = fault.policy or policy or batching
    asked = _Asked(sent_s, number, served_by, fault.batch_size)
    factors = _with_fault(asked, factors, fault)
    leaks = _leaks(asked, factors, fault.leak)
    done = asked.served(factors * leaks)
    columns = _times(asked, done, factors, leaks, fault, random)
    if not timed:
        columns = {name: columns[name] for name in ("sent_s", "scheduled_s", "done_s", "latency_s")}
    return _as_run(columns, number, batching if timed else None, rate, workload)


def _times(
    asked: _Asked,
    done: Simulated,
    factors: np.ndarray,
    leaks: np.ndarray,
    fault: Fault,
    random: np.random.Generator,
) -> dict[str, np.ndarray]:
    """The columns of a run's rows that hold times, in seconds."""
    # 1) Requests of one batch begin together, are encoded in one call, and take its first's time
    requests = len(factors)
    members = np.ones(requests, int)
    if asked.batching == "dynamic":
        _, first, batch, count = np.unique(
            done.begun_s, return_index=True, return_inverse=True, return_counts=True
        )
        members = count[batch]
        factors = factors[first[batch]]
        leaks = leaks[first[batch]]

    # 2) The stages, with or without what leaks
    in_stages = factors if fault.leak_is_outside else factors * leaks
    denoise_s = done.denoise_s / leaks if fault.leak_is_outside else done.denoise_s
    encode_s = ACTUAL.encode_s[0, members] * in_stages
    decode_s = ACTUAL.decode_s[0, members] * in_stages
    queue_s = done.begun_s - asked.sent_s
    total_s = done.done_s - asked.sent_s + AFTER_S / 2

    # 3) The way to the client
    outside_s = AFTER_S / 2 * random.uniform(0.9, 1.1, requests)
    is_late = random.random(requests) < 0.2
    service_s = float(np.median(denoise_s))
    outside_s += is_late * fault.client * service_s * random.uniform(0.5, 1.5, requests)
    latency_s = total_s + outside_s
    return {
        "sent_s": asked.sent_s,
        "scheduled_s": asked.sent_s,
        "done_s": asked.sent_s + latency_s,
        "latency_s": latency_s,
        "queue_s": queue_s,
        "encode_s": encode_s,
        "denoise_s": denoise_s,
        "decode_s": decode_s,
        "wait_s": total_s - queue_s - encode_s - denoise_s - decode_s,
        "total_s": total_s,
        "batch_size": done.batch_size,
        "image_s": np.zeros(requests),
    }


def _as_run(
    times: dict[str, np.ndarray],
    steps: np.ndarray,
    batching: str | None,
    rate: float,
    workload: Workload,
) -> Run:
    """A run in memory; `batching` is None for a server that says nothing of itself."""
    requests = len(steps)
    columns: dict[str, Any] = {
        "index": np.arange(requests),
        "request_id": [str(i) for i in range(requests)],
        "phase": ["measure"] * requests,
        "http_status": np.full(requests, 200),
        "num_inference_steps": steps,
        "guidance_scale": np.full(requests, 7.5),
        "width": np.full(requests, 1024),
        "height": np.full(requests, 1024),
    }
    columns |= times
    nothing = [None] * requests
    frame = {
        name: pd.Series(columns.get(name, nothing), dtype=dtype)
        for name, dtype in ROW_DTYPES.items()
    }
    target: dict[str, Any] = {"batching": batching, "max_batch_size": MAX_BATCH_SIZE}
    target["max_wait_ms"] = 1000 * MAX_WAIT_S
    if batching is not None:
        target["step_times"] = StepTimesBySize({SIZE: TIMES}).to_spec()
    spec = {
        "target": target,
        "arrivals": {"kind": "open_loop", "rate": rate},
        "workload": workload.to_dict(),
    }
    record = {"spec": spec, "status": "finished", "outcome": {}}
    return Run(record, pd.DataFrame(frame), pd.DataFrame(), Path("no-folder"))


# ---- the truth


def long_queue(
    batching: str, *, rate: float, steps: Sequence[int], noise: str, requests: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A long queue without a fault: moments of sending and latencies in seconds, and steps."""
    random = np.random.default_rng(seed)
    sent_s = np.cumsum(random.exponential(size=requests)) / rate
    number = random.choice(np.array(steps), requests)
    served = _Asked(sent_s, number, batching).served(NOISES[noise](random, requests))
    after_s = AFTER_S / 2 * (1 + random.uniform(0.9, 1.1, requests))
    return sent_s, served.done_s - sent_s + after_s, number


def most_images_per_s(batching: str, *, steps: Sequence[int], noise: str) -> float:
    """The throughput of a lane to which requests come one by one, a tenth faster than it serves."""
    random = np.random.default_rng(1)
    requests = 20_000
    number = random.choice(np.array(steps), requests)
    factors = NOISES[noise](random, requests)
    together = _Asked(np.zeros(requests), number, batching).served(factors)
    at_most = requests / float(together.done_s.max())
    sent_s = np.cumsum(random.exponential(size=requests)) / (1.1 * at_most)
    done_s = np.sort(_Asked(sent_s, number, batching).served(factors).done_s)
    begin, end = np.searchsorted(done_s, [0.3 * sent_s[-1], sent_s[-1]])
    return float((end - 1 - begin) / (done_s[end - 1] - done_s[begin]))
