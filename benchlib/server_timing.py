"""The W3C Server-Timing header: how a server says where a request's time went, and how it is read.

Pure. Ignorant of HTTP, and of which server sends it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

PARTS = ("queue", "wait", "encode", "denoise", "decode", "image")
"""The server's parts of a request, which add up to `total`: waiting first, then work."""
MOST_RETRIES = 1000  # a server that says more is not believed

_METRIC = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_PARAMETER = re.compile(r';\s*(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"?|([^;]*))')


def write_server_timing(
    parts_s: Mapping[str, float],
    batch_size: float | None = None,
    *,
    replica: str | None = None,
    retries: int = 0,
) -> str:
    """The W3C `Server-Timing` header of PARTS and `total`, in ms. Raises ValueError for others.

    `replica` made the image, after as many retries as other replicas were lost meanwhile.
    """
    if not parts_s.keys() <= {*PARTS, "total"}:
        raise ValueError(f"the parts are {', '.join(PARTS)} and total, not {', '.join(parts_s)}")
    metrics = [f"{part};dur={seconds * 1000:.6f}" for part, seconds in parts_s.items()]
    if batch_size is not None:
        metrics.append(f'batch;desc="{batch_size}"')
    if replica is not None:
        metrics.append(f'replica;desc="{replica}"')
    if retries:
        metrics.append(f'retry;desc="{retries}"')
    return ", ".join(metrics)


def parse_server_timing(header: str) -> dict[str, dict[str, str]]:
    """The metrics of a W3C `Server-Timing` header by name, each with its parameters as text.

    The parameters are `dur` (in ms) and `desc`. The header may have any order and spacing, quoted
    or bare values, missing or unknown parameters. Of two metrics with one name, the first counts.
    """
    metrics: dict[str, dict[str, str]] = {}
    for entry in _METRIC.findall(header):
        name = entry.partition(";")[0].strip()
        if name in metrics:
            continue
        parameters: dict[str, str] = {}
        for key, quoted, bare in _PARAMETER.findall(entry):
            value = re.sub(r"\\(.)", r"\1", quoted) or bare.strip()
            parameters.setdefault(key.lower(), value)
        metrics[name] = parameters
    return metrics


def replica_of(timing: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The name of who made the image, and how often it was begun anew; empty of a single server."""
    name = timing.get("replica", {}).get("desc")
    if not name:
        return {}
    retries = timing.get("retry", {}).get("desc", "0")
    if not retries.isdecimal() or len(retries) > len(str(MOST_RETRIES)):
        return {"replica": name}
    return {"replica": name, "retries": int(retries)}
