"""What an answer says of time and memory: each server's own shape, and what is no value."""

import json

import pytest

from benchlib.load.image_answers import (
    said_by_benchmark,
    said_by_nobody,
    said_by_sglang,
    said_by_vllm_omni,
)

IMAGE = {"b64_json": "iVBO" * 1000, "url": None, "revised_prompt": None}
OF_VLLM_OMNI = {
    "created": 1701234567, "data": [IMAGE], "output_format": "png", "size": "1024x1024",
    "cot_output": None,
    "metrics": {
        "stage_durations": {
            "StableDiffusionXLPipeline.text_encoder.forward": 0.25,
            "StableDiffusionXLPipeline.text_encoder_2.forward": 0.25,
            "StableDiffusionXLPipeline.diffuse": 2.0,
            "StableDiffusionXLPipeline.vae.decode": 0.125,
            "StableDiffusionXLPipeline.tokenizer.forward": 0.01,
            "StableDiffusionXLPipeline.forward": 2.75,
            "queue_wait_ms": 500.0,
            "stage_0_gen_ms": 2800.0,
        },
        "peak_memory_mb": 8192.0,
    },
}  # fmt: skip
OF_SGLANG = {
    "id": "a", "created": 1, "data": [IMAGE], "peak_memory_mb": 8192.0, "inference_time_s": 2.5,
}  # fmt: skip


def written(answer):
    return json.dumps(answer).encode()


def test_each_server_says_it_in_its_own_shape():
    assert said_by_benchmark(b'{"time_s": 2.5, "mem_gb": 8}') == {
        "service_s": 2.5,
        "server_peak_gib": 8,
    }
    assert said_by_vllm_omni(written(OF_VLLM_OMNI)) == {
        "queue_s": 0.5, "encode_s": 0.5, "denoise_s": 2.0, "decode_s": 0.125, "service_s": 2.75,
        "server_peak_gib": 8.0,
    }  # fmt: skip
    assert said_by_sglang(written(OF_SGLANG)) == {"service_s": 2.5, "server_peak_gib": 8.0}
    assert said_by_nobody(written(OF_SGLANG)) == {}


@pytest.mark.parametrize("space", ["", " "])
def test_values_before_and_after_the_image_are_found(space):
    separators = (f",{space}", f":{space}")
    for fields in (OF_SGLANG, dict(reversed(OF_SGLANG.items()))):
        answer = json.dumps(fields, separators=separators).encode()
        assert said_by_sglang(answer)["service_s"] == 2.5


@pytest.mark.parametrize("peak", [0.0, None, "8192", True, -1, float("nan"), float("inf"), 10**400])
def test_what_is_unknown_is_left_out(peak):
    metrics = {"stage_durations": None, "peak_memory_mb": peak}
    assert said_by_vllm_omni(written({"data": [IMAGE], "metrics": metrics})) == {}
    metrics = {"stage_durations": {"P.diffuse": peak, "diffuse": 1.0, "P.other": 1.0}}
    assert said_by_vllm_omni(written({"data": [IMAGE], "metrics": metrics})) == {}
    slow = {"data": [IMAGE], "peak_memory_mb": peak, "inference_time_s": peak}
    assert said_by_sglang(written(slow)) == {}


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"[]", b"5", b"\xff", b"[" * 100_000, b'{"metrics": 5}', b'{"b64_json": "half',
        b'{"data": [{"b64_json": null}], "metrics": []}', b'"b64_json"', b'{"b64_json"',
    ],
)  # fmt: skip
def test_an_answer_of_another_shape_says_nothing(answer):
    assert said_by_vllm_omni(answer) == {}
    assert said_by_sglang(answer) == {}
    assert set(said_by_benchmark(answer).values()) == {None}


def test_an_image_at_a_link_hides_no_value():
    linked = OF_SGLANG | {"data": [{"b64_json": None, "url": "/v1/images/a/content"}]}
    assert said_by_sglang(written(linked))["service_s"] == 2.5
