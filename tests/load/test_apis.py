"""What is sent to each API, and which answers with the status 200 are none."""

import pytest

from benchlib.load.apis import APIS
from benchlib.load.workload import Workload


@pytest.mark.parametrize(
    ("api", "answer", "fault"),
    [
        ("benchmark", b'{"time_s": 1.5, "prompt": "an error"}', None),
        ("benchmark", b'{"image": "...", "mine": 1}', None),
        ("benchmark", b"an image, honestly", "it is not JSON"),
        ("benchmark", b"", "it is not JSON"),
        ("benchmark", b"[1]", "it is no JSON object"),
        ("benchmark", b"{}", "it is empty"),
        ("benchmark", b'{"error": "busy"}', "it has the field error"),
        ("benchmark", b'{"detail": "Not Found"}', "it has the field detail"),
        ("benchmark", b'"' + b"a" * 2**20, "it has 1048577 bytes"),
        ("openai", b'{"created": 1, "data": [{"b64_json": "iVBO"}]}', None),
        ("openai", b'{"data": [{"url": "http://h/1.png"}]}', None),
        ("openai", b'{"created": 1, "data": []}', "it holds no image"),
        ("openai", b'{"error": {"message": "busy"}}', "it holds no image"),
        ("vllm-omni", b'{"created": 1, "data": [], "metrics": null}', "it holds no image"),
        ("sglang", b'{"id": "1", "data": [{"b64_json": "iVBO"}]}', None),
    ],
)
def test_an_answer_without_an_image_is_none(api, answer, fault):
    assert APIS[api].fault(answer) == fault


@pytest.mark.parametrize("api", ["openai", "vllm-omni", "sglang"])
def test_an_images_api_has_one_field_for_the_size(api):
    to_body = APIS[api].to_body
    body = Workload("a", 1536, 4096, 200, 1.5, "", seed=3).request(0)
    assert to_body(body) == {
        "prompt": "a", "size": "1536x4096", "num_inference_steps": 200, "guidance_scale": 1.5,
        "negative_prompt": "", "seed": body["seed"], "n": 1, "response_format": "b64_json",
    }  # fmt: skip
    assert "size" not in to_body({"prompt": "a"})
    with pytest.raises(ValueError, match=f"api='{api}' has one field for the size"):
        to_body({"prompt": "a", "width": 64})


def test_a_field_that_an_api_would_pass_over_is_refused():
    for api in ("vllm-omni", "sglang"):
        for field in ("lora", "scheduler"):
            with pytest.raises(ValueError, match=f"api='{api}' can't ask for a {field}"):
                APIS[api].to_body({"prompt": "a", field: "style"})
