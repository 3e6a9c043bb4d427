"""The W3C Server-Timing header: how a server says where a request's time went, and how it is read.

Pure. Ignorant of HTTP, and of which server sends it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

PARTS = ("queue", "wait", "encode", "denoise", "decode", "image")
"""The server's parts of a request, which add up to `total`: waiting first, then work."""

_METRIC = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_PARAMETER = re.compile(r';\s*(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"?|([^;]*))')


def write_server_timing(parts_s: Mapping[str, float], batch_size: float | None = None) -> str:
    """The W3C `Server-Timing` header of PARTS and `total`, in ms. Raises ValueError for others."""
    if not parts_s.keys() <= {*PARTS, "total"}:
        raise ValueError(f"the parts are {', '.join(PARTS)} and total, not {', '.join(parts_s)}")
    metrics = [f"{part};dur={seconds * 1000:.6f}" for part, seconds in parts_s.items()]
    if batch_size is not None:
        metrics.append(f'batch;desc="{batch_size}"')
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
