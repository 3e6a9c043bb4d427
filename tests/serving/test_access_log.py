"""The access log: a line of JSON for each request, without prompts, keys and secret paths."""

import json

import httpx
import pytest

from benchlib.serving.server import serve
from benchmarks.fakes.fake_pipeline import FakePipeline
from tests.serving.test_server import SMALL, wait_until

KEY = "k3y-of-this-test"
IMAGES = {"prompt": "a secret wish", "n": 2, "size": "64x64", "num_inference_steps": 3}


def lines_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_each_request_has_a_line(capsys):
    with (
        serve(FakePipeline(), name="logged", access_log=True, api_key=KEY) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        client.headers["Authorization"] = f"Bearer {KEY}"
        answer = client.post("/v1/images/generations", json=IMAGES, headers={"X-Request-ID": "one"})
        link = answer.json()["data"][0]["url"]
        client.get(link).raise_for_status()
        client.post("/benchmark/generate", json=SMALL | {"width": 65, "prompt": "another wish"})
        client.head("/health")
        client.get("/nothing/at/all")
        httpx.get(f"{server.url}/metrics")
    text = capsys.readouterr().out
    image, file, bad, health, nothing, locked = map(json.loads, text.splitlines())

    # 1) An answer with images
    expected = {
        "id": "one", "client": "127.0.0.1", "method": "POST", "status": 200,
        "route": "/v1/images/generations", "images": 2, "width": 64, "height": 64, "steps": 6,
    }  # fmt: skip
    assert expected.items() <= image.items()
    parts = ("queue_s", "encode_s", "denoise_s", "decode_s", "image_s", "wait_s")
    assert sum(image[part] for part in parts) == pytest.approx(image["total_s"], abs=1e-4)
    assert image["batch_size"] >= 1

    # 2) The others
    assert (file["route"], file["status"]) == ("/images/{name}", 200)
    assert (bad["route"], bad["status"]) == ("/benchmark/generate", 422)
    assert (health["route"], health["status"], health["method"]) == ("/health", 200, "HEAD")
    assert (nothing["route"], nothing["status"]) == (None, 404)
    assert (locked["route"], locked["status"]) == (None, 401)
    for line in (file, bad, health, nothing, locked):
        assert line["total_s"] >= 0
        assert "steps" not in line

    # 3) What no line has
    for secret in ("wish", KEY, link.rpartition("/")[2], "/nothing"):
        assert secret not in text


def test_a_client_that_has_gone_has_a_line(capsys):
    pipeline = FakePipeline()
    with serve(pipeline, name="logged", access_log=True) as server:
        pipeline.gate.clear()
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/benchmark/generate", json=SMALL, timeout=0.5)
        seen = []
        wait_until(lambda: seen.extend(lines_of(capsys)) or seen, 60)
        pipeline.gate.set()
    assert [line["status"] for line in seen] == [499]


def test_by_default_nothing_is_logged(capsys):
    with serve(FakePipeline(), name="quiet") as server:
        httpx.get(f"{server.url}/health").raise_for_status()
    assert capsys.readouterr().out == ""
