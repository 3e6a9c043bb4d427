"""The routes and bodies of two APIs that make an image. Ignorant of which image is requested."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


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


APIS: dict[str, tuple[str, Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "benchmark": ("/benchmark/generate", dict),
    "openai": ("/v1/images/generations", _openai_body),
}
"""By name: the route, and a function that turns the fields of `Workload.request` into the body."""
