"""Which answers with the status 200 are none."""

import pytest

from benchlib.load.apis import APIS


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
    ],
)
def test_an_answer_without_an_image_is_none(api, answer, fault):
    assert APIS[api].fault(answer) == fault
