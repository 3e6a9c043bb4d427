"""Knows what one row of requests.jsonl holds, and how to read what a server tells of its work.

Pure. Ignorant of Locust, sockets and files, and of which server it was: what a server does not tell is None.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PARAMETERS = (
    "prompt",
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "width",
    "height",
    "seed",
)
SERVER_PARTS = ("queue", "wait", "encode", "denoise", "decode", "image", "total")

_METRIC = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_PARAMETER = re.compile(r';\s*(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"?|([^;]*))')


@dataclass
class Call:
    """One request on its way. Moments are seconds on `time.monotonic()`; `due_s` is when it should have been sent.

    It is due once its user's turn comes (in a closed loop `late_s` after the user was ready), and sent once it has a
    connection (where it gets none: once it asks for one); None where the run was cut before. `read_s` is when the last
    part of an answer came, `done_s` when the request had ended, well or not.
    """

    index: int
    request_id: str
    body: dict[str, Any]
    due_s: float
    late_s: float = 0.0
    sent_s: float | None = None
    read_s: float | None = None
    done_s: float | None = None


def make_row(
    call: Call,
    *,
    started_s: float,
    warmup_s: float,
    http_status: int | None = None,
    error: str | None = None,
    server_timing: str = "",
    body: bytes = b"",
) -> dict[str, Any]:
    """The row of `call`, its times in seconds from `started_s`; `body` and `server_timing` are what the server sent."""
    scheduled_s = call.due_s - started_s
    done_s = None if call.done_s is None else call.done_s - started_s
    timing, told = parse_server_timing(server_timing), _json_object(body)
    return {
        "index": call.index,
        "request_id": call.request_id,
        "phase": "warmup" if scheduled_s < warmup_s else "measure",
        "scheduled_s": scheduled_s,
        "sent_s": None if call.sent_s is None else call.sent_s - started_s,
        "done_s": done_s,
        "latency_s": None if done_s is None else done_s - scheduled_s,
        "http_status": http_status,
        "error": error,
        **{name: call.body.get(name) for name in PARAMETERS},
        "request_class": "x".join(
            str(call.body.get(name, "?")) for name in ("width", "height", "num_inference_steps")
        ),
        **{f"{part}_s": _seconds(timing.get(part, {}).get("dur")) for part in SERVER_PARTS},
        "batch_size": _number(timing.get("batch", {}).get("desc")),
        "service_s": _number(told.get("time_s")),
        "server_peak_gib": _number(told.get("mem_gb")),
    }


def parse_server_timing(header: str) -> dict[str, dict[str, str]]:
    """The metrics of a W3C `Server-Timing` header, by name, each with its parameters (`dur` in ms, `desc`) as text.

    Tolerant: any order and spacing, quoted or bare values, parameters missing or unknown. The first of a name counts.
    """
    metrics: dict[str, dict[str, str]] = {}
    for entry in _METRIC.findall(header):
        name, _, _ = entry.partition(";")
        parameters = metrics.setdefault(name.strip(), {}) if name.strip() not in metrics else {}
        for key, quoted, bare in _PARAMETER.findall(entry):
            parameters.setdefault(key.lower(), re.sub(r"\\(.)", r"\1", quoted) or bare.strip())
    return metrics


def _json_object(body: bytes) -> Mapping[str, Any]:
    try:
        told = json.loads(body) if body else {}
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _number(value: Any) -> float | None:
    """`value` as a finite number of 0 or more, else None."""
    try:
        number = None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and math.isfinite(number) and number >= 0 else None


def _seconds(milliseconds: Any) -> float | None:
    number = _number(milliseconds)
    return None if number is None else number / 1000
