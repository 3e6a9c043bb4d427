"""The routes, bodies and answers of the APIs that make an image. Ignorant of which image it is.

vLLM-Omni and SGLang answer OpenAI's route with figures of their own (see image_answers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from benchlib.load.image_answers import (
    answer_object,
    said_by_benchmark,
    said_by_nobody,
    said_by_sglang,
    said_by_vllm_omni,
)

_OPENAI_ROUTE = "/v1/images/generations"
_MOST_BYTES = 2**20
"""An answer of the benchmark's API has some hundred bytes, and holds no image."""


def _openai_body(body: Mapping[str, Any], api: str = "openai") -> dict[str, Any]:
    fields = {**body, "n": 1, "response_format": "b64_json"}
    width = fields.pop("width", None)
    height = fields.pop("height", None)
    if (width is None) != (height is None):
        raise ValueError(
            f"api={api!r} has one field for the size: give both width and height, or neither"
        )
    if width is not None:
        fields["size"] = f"{width}x{height}"
    return fields


def _other_body(body: Mapping[str, Any], api: str) -> dict[str, Any]:
    """The body for a server that would pass over a field of ours, as if nobody had asked for it."""
    # vLLM-Omni has adapters, but by their files' paths on the server.
    for field in ("scheduler", "lora"):
        if field in body:
            raise ValueError(f"api={api!r} can't ask for a {field}: leave it out of the workload")
    return _openai_body(body, api)


def _benchmark_fault(answer: bytes) -> str | None:
    if len(answer) > _MOST_BYTES:
        return f"it has {len(answer)} bytes"
    fields = answer_object(answer)
    if isinstance(fields, str):
        return fields
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
    """An API: its route, its bodies, which answers are none, and what an answer says.

    `to_body` turns the fields of `Workload.request` into the body. It raises ValueError for a field
    that the API lacks. `fault` says why an answer with the status 200 is no answer, or None. `said`
    gives what an answer says of time and memory, under the names of a row's columns.
    """

    route: str
    to_body: Callable[[Mapping[str, Any]], dict[str, Any]]
    fault: Callable[[bytes], str | None]
    said: Callable[[bytes], dict[str, Any]]


APIS = {
    "benchmark": Api("/benchmark/generate", dict, _benchmark_fault, said_by_benchmark),
    "openai": Api(_OPENAI_ROUTE, _openai_body, _openai_fault, said_by_nobody),
    "vllm-omni": Api(
        _OPENAI_ROUTE, partial(_other_body, api="vllm-omni"), _openai_fault, said_by_vllm_omni
    ),
    "sglang": Api(_OPENAI_ROUTE, partial(_other_body, api="sglang"), _openai_fault, said_by_sglang),
}
