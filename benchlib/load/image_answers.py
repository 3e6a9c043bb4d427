"""What the answers of image servers say of time and memory, under the names of a row's columns.

A value that an answer lacks, or gives as 0, is left out: unknown is never 0. Knows the shapes of
the answers. Ignorant of routes, requests and rows.

vLLM-Omni 0.30.0 (diffusion/profiler, entrypoints/openai/api_server.py) has `metrics`, with
`peak_memory_mb` and `stage_durations`. These are in seconds, but for names that end in "_ms". They
have the model's stages if the server was started with `--enable-diffusion-pipeline-profiler`.
SGLang 0.5.23 (multimodal_gen/runtime/entrypoints/openai) has `inference_time_s` and
`peak_memory_mb`. The peak of both is what torch's allocator reserved, in bytes / 2**20.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_MIB_PER_GIB = 1024
_BEYOND_BELIEF = 1e12  # also as a time or a memory; it leaves out infinity
_PIXELS = b'"b64_json"'
_VLLM_OMNI_STAGES = {
    "text_encoder.forward": "encode_s",
    "text_encoder_2.forward": "encode_s",
    "diffuse": "denoise_s",
    "vae.decode": "decode_s",
    "forward": "service_s",
}
"""A stage's name is that of the pipeline's class, a dot and one of these."""


def answer_object(answer: bytes) -> dict[str, Any] | str:
    """The JSON object of an answer, or what it is instead, in words."""
    try:
        fields = json.loads(answer)
    except (ValueError, RecursionError):  # RecursionError: brackets within brackets by the thousand
        return "it is not JSON"
    return fields if isinstance(fields, dict) else "it is no JSON object"


def said_by_benchmark(answer: bytes) -> dict[str, Any]:
    """What our own route says."""
    fields = _fields_of(answer)
    return {"service_s": fields.get("time_s"), "server_peak_gib": fields.get("mem_gb")}


def said_by_nobody(answer: bytes) -> dict[str, Any]:  # noqa: ARG001 - it has megabytes of image
    """OpenAI's API says nothing of time and memory."""
    return {}


def said_by_vllm_omni(answer: bytes) -> dict[str, Any]:
    """The stages that vLLM-Omni times, and its peak of memory."""
    metrics = _fields_of(_without_image(answer)).get("metrics")
    if not isinstance(metrics, dict):
        return {}
    said = _peak_of(metrics)
    durations = metrics.get("stage_durations")
    if not isinstance(durations, dict):
        return said
    for name, seconds in durations.items():
        _, _, stage = name.partition(".")
        column = _VLLM_OMNI_STAGES.get(stage)
        if column is not None and _is_positive(seconds):
            said[column] = said.get(column, 0.0) + seconds
    if _is_positive(durations.get("queue_wait_ms")):
        said["queue_s"] = durations["queue_wait_ms"] / 1000
    return said


def said_by_sglang(answer: bytes) -> dict[str, Any]:
    """The time that SGLang worked for the image, and its peak of memory."""
    fields = _fields_of(_without_image(answer))
    said = _peak_of(fields)
    if _is_positive(fields.get("inference_time_s")):
        said["service_s"] = fields["inference_time_s"]
    return said


def _peak_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    peak_mib: Any = fields.get("peak_memory_mb")
    return {"server_peak_gib": peak_mib / _MIB_PER_GIB} if _is_positive(peak_mib) else {}


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < _BEYOND_BELIEF


def _fields_of(answer: bytes) -> dict[str, Any]:
    fields = answer_object(answer)
    return {} if isinstance(fields, str) else fields


def _without_image(answer: bytes) -> bytes:
    """`answer` without the text of its image: parsing megabytes would hold up other requests.

    The text is base64, which has no quotes.
    """
    key = answer.find(_PIXELS)
    start = answer.find(b'"', key + len(_PIXELS)) + 1
    between = answer[key + len(_PIXELS) : start - 1].strip()
    end = answer.find(b'"', start)
    if key < 0 or between != b":" or end < 0:
        return answer
    return answer[:start] + answer[end:]
