"""The routes, bodies and answers of two APIs that make an image. Ignorant of which image it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_MOST_BYTES = 2**20
"""An answer of the benchmark's API has some hundred bytes, and holds no image."""


def _openai_body(body: Mapping[str, Any]) -> dict[str, Any]:
    fields = {**body, "n": 1, "response_format": "b64_json"}
    width = fields.pop("width", None)
    height = fields.pop("height", None)
    if (width is None) != (height is None):
        raise ValueError(
            "api='openai' has one field for the size: give both width and height, or neither"
        )
    if width is not None:
        fields["size"] = f"{width}x{height}"
    return fields


def _benchmark_fault(answer: bytes) -> str | None:
    if len(answer) > _MOST_BYTES:
        return f"it has {len(answer)} bytes"
    try:
        fields = json.loads(answer)
    except (ValueError, RecursionError):
        return "it is not JSON"
    if not isinstance(fields, dict):
        return "it is no JSON object"
    for name in ("error", "detail"):
        if name in fields:
            return f"it has the field {name}"
    return None if fields else "it is empty"


def _openai_fault(answer: bytes) -> str | None:
    # Parsing megabytes would hold up the other requests.
    if b'"b64_json"' in answer or b'"url"' in answer:
        return None
    return "it holds no image"


class Api(NamedTuple):
    """An API: its route, its bodies, and which answers are none.

    `to_body` turns the fields of `Workload.request` into the body. `fault` says why an answer with
    the status 200 is no answer, or None.
    """

    route: str
    to_body: Callable[[Mapping[str, Any]], dict[str, Any]]
    fault: Callable[[bytes], str | None]


APIS = {
    "benchmark": Api("/benchmark/generate", dict, _benchmark_fault),
    "openai": Api("/v1/images/generations", _openai_body, _openai_fault),
}
