"""The columns of one row of requests.jsonl, and how a row is made of a server's answer.

Pure. Ignorant of Locust, sockets, files and each API's answers: a value that the server does not
send is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchlib.server_timing import PARTS, parse_server_timing, replica_of

PARAMETERS = {
    "prompt": "string",
    "negative_prompt": "string",
    "num_inference_steps": "Int64",
    "guidance_scale": "float64",
    "width": "Int64",
    "height": "Int64",
    "seed": "Int64",  # exact to 2**63 - 1
    "lora": "string",
    "scheduler": "string",
}
PARTS_IN_TIME = ("queue", "encode", "denoise", "wait", "decode", "image")
"""The parts in order of time; the wait for other images falls among the steps of denoising."""
STAGES = ("encode", "denoise", "decode")  # in which the model works

ROW_DTYPES = (
    {"index": "Int64", "request_id": "string", "phase": "string"}
    | dict.fromkeys(("scheduled_s", "sent_s", "done_s", "latency_s"), "float64")
    | {"http_status": "Int64", "error": "string"}
    | PARAMETERS
    | {f"{part}_s": "float64" for part in (*PARTS, "total")}
    | dict.fromkeys(("batch_size", "service_s", "server_peak_gib"), "float64")
    | {"target": "string"}
    | {f"{stage}_peak_gib": "float64" for stage in STAGES}
    | {"launch_s": "float64", "replica": "string", "retries": "Int64", "worker": "string"}
)
"""The columns of a run's requests, in order. Null is NaN in float64 and pd.NA in other types."""

TIMES_BEYOND_BELIEF = 2.0
"""A server's time of more than so many times the whole request, and 1 s, is taken for unknown.

Smaller disagreements are kept: a check of the run tells them.
"""


@dataclass
class Call:
    """One request on its way.

    Moments are seconds on `time.monotonic()`, and None until they are reached. `due_s` is when it
    should be sent; `late_s` is how long its user had been ready by then (closed loop). `sent_s` is
    when it got a connection. `read_s` is when the last part of the answer came, `done_s` when the
    request had ended, well or not. `target` is the URL that it went to, where there are several.
    """

    index: int
    request_id: str
    body: dict[str, Any]
    due_s: float
    late_s: float = 0.0
    sent_s: float | None = None
    read_s: float | None = None
    done_s: float | None = None
    target: str | None = None


def make_row(
    call: Call,
    *,
    started_s: float,
    warmup_s: float,
    http_status: int | None = None,
    error: str | None = None,
    server_timing: str = "",
    said: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The row of `call`; times count from `started_s`, `said` is what the body says, by column."""
    said = said or {}
    scheduled_s = call.due_s - started_s
    sent_s = None if call.sent_s is None else call.sent_s - started_s
    done_s = None if call.done_s is None else call.done_s - started_s
    timing = parse_server_timing(server_timing)
    parts_s = {f"{part}_s": _seconds(timing.get(part, {})) for part in (*PARTS, "total")}
    for name, seconds in parts_s.items():
        if seconds is None:
            parts_s[name] = _finite(said.get(name))
    service_s = _finite(said.get("service_s"))
    if not _are_credible([*parts_s.values(), service_s], call):
        parts_s = dict.fromkeys(parts_s)
        service_s = None
    return {
        "index": call.index,
        "request_id": call.request_id,
        "phase": "warmup" if scheduled_s < warmup_s else "measure",
        "scheduled_s": scheduled_s,
        "sent_s": sent_s,
        "done_s": done_s,
        "latency_s": None if done_s is None else done_s - scheduled_s,
        "http_status": http_status,
        "error": error,
        **{name: call.body.get(name) for name in PARAMETERS},
        **parts_s,
        "batch_size": _finite(timing.get("batch", {}).get("desc")),
        "service_s": service_s,
        "server_peak_gib": _finite(said.get("server_peak_gib")),
        "target": call.target,
        **replica_of(timing),
    }


def _are_credible(parts_s: Iterable[float | None], call: Call) -> bool:
    """Whether the server can have taken so long: no part may far exceed the whole request."""
    if call.sent_s is None or call.done_s is None:
        return True
    most_s = TIMES_BEYOND_BELIEF * (call.done_s - call.sent_s) + 1.0
    return all(seconds is None or seconds <= most_s for seconds in parts_s)


def _finite(value: Any) -> float | None:
    """`value` as a finite number of 0 or more, else None."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _seconds(metric: Mapping[str, str]) -> float | None:
    milliseconds = _finite(metric.get("dur"))
    return None if milliseconds is None else milliseconds / 1000
