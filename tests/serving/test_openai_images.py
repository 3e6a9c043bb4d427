"""OpenAI's images API by OpenAI's client, on real uvicorn with the tiny model or a fake model."""

import base64
import io
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from benchlib.serving.schemas import MAX_SEED, GenerateRequest
from benchlib.serving.server import serve
from benchmarks.fakes.fake_pipeline import FakePipeline
from tests.serving.test_server import wait_until

SMALL = {
    "prompt": "a lighthouse",
    "size": "64x64",
    "extra_body": {"num_inference_steps": 2, "seed": 5},
}


@pytest.fixture(scope="module")
def server(tiny):
    # A larger batch takes longer to get ready.
    options = {"max_pixel_steps": 128 * 128 * 8, "max_batch_size": 2}
    with serve(tiny, name="openai", **options) as server:
        yield server


@contextmanager
def client_of(server):
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60
    ) as client:
        yield client


@pytest.fixture(scope="module")
def client(server):
    with client_of(server) as client:
        yield client


@contextmanager
def fake_client(pipeline, **options):
    with serve(pipeline, name="fake-openai", **options) as server, client_of(server) as client:
        try:
            yield client
        finally:
            pipeline.gate.set()


def opened(image):
    return Image.open(io.BytesIO(base64.b64decode(image.b64_json)))


def test_a_png_is_the_pipelines_image(client, tiny):
    answer = client.images.generate(model="tiny", response_format="b64_json", **SMALL)
    [image] = answer.data
    assert opened(image).format == "PNG"
    assert (answer.size, answer.output_format) == ("64x64", "png")
    assert abs(answer.created - time.time()) < 60
    request = GenerateRequest(
        prompt="a lighthouse", width=64, height=64, num_inference_steps=2, seed=5
    )
    np.testing.assert_array_equal(
        np.asarray(opened(image)), np.asarray(tiny.generate(request).images[0])
    )


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, "PNG"),
        ({"output_format": "jpeg"}, "JPEG"),
        ({"output_format": "webp", "output_compression": 30}, "WEBP"),
    ],
)
def test_each_format_decodes_to_the_requested_size(client, options, kind):
    image = opened(client.images.generate(**SMALL | {"size": "64x72"}, **options).data[0])
    image.load()
    assert (image.format, image.size, image.mode) == (kind, (64, 72), "RGB")


def test_less_quality_is_a_smaller_file(client):
    best, worst = (
        len(
            client.images.generate(**SMALL, output_format="jpeg", output_compression=q)
            .data[0]
            .b64_json
        )
        for q in (100, 5)
    )
    assert worst < best / 2


def test_n_images_are_those_of_n_seeds(client, tiny):
    answer = client.images.with_raw_response.generate(n=3, **SMALL)
    assert answer.headers["x-seed"] == "5"
    fields = {"prompt": "a lighthouse", "width": 64, "height": 64, "num_inference_steps": 2}
    for number, image in enumerate(answer.parse().data):
        alone = tiny.generate(GenerateRequest(seed=5 + number, **fields)).images[0]
        np.testing.assert_allclose(
            np.asarray(opened(image), float), np.asarray(alone, float), atol=1
        )


def test_what_is_left_out_is_the_models_own(client, tiny):
    showcase = tiny.spec["showcase"]
    for size in ({}, {"size": "auto"}):
        answer = client.images.with_raw_response.generate(prompt="a lighthouse", **size)
        assert opened(answer.parse().data[0]).size == (showcase["width"], showcase["height"])
        assert int(answer.headers["x-seed"]) <= MAX_SEED


def test_extras_change_the_image_and_strangers_do_not(client):
    def image(**more):
        answer = client.images.generate(**SMALL | {"extra_body": SMALL["extra_body"] | more})
        return answer.data[0].b64_json

    plain = image()
    assert (
        image(quality="hd", user="me", background="opaque", nobody_knows=[1, {"a": None}]) == plain
    )
    assert (
        image(n=None, size="64x64", stream=False, guidance_scale=None, output_format=None) == plain
    )
    assert len({plain, image(guidance_scale=1), image(negative_prompt=""), image(seed=6)}) == 4


@pytest.mark.parametrize("n", [1, 3])
def test_server_timing_adds_up_and_has_the_files_time(client, n):
    answer = client.images.with_raw_response.generate(n=n, **SMALL)
    parts = {
        k: float(ms) for k, ms in re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"])
    }
    total_ms = parts.pop("total")
    assert sum(parts.values()) == pytest.approx(total_ms, rel=0.01, abs=1)
    assert 0 < parts["image"] < total_ms
    assert total_ms < answer.elapsed.total_seconds() * 1000


def test_the_model_is_listed(client):
    [model] = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "benchlib")
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="'tiny'") as raised:
        client.models.retrieve("owner/other")
    assert raised.value.code == "model_not_found"


def test_adapters_are_listed_and_may_be_named_as_the_model():
    pipeline = FakePipeline()
    pipeline.spec |= {
        "loras": ["style", "face"],
        "lora_files": {"style": "/a/s.safetensors", "face": "x/y"},
    }
    with fake_client(pipeline) as client:
        model, style, face = client.models.list().data
        assert (model.id, model.root, model.parent) == ("fake", "fake", None)
        assert (style.id, style.root, style.parent) == ("style", "/a/s.safetensors", "fake")
        assert client.models.retrieve("face") == face
        asked = []
        encode = pipeline.encode
        pipeline.encode = lambda requests: asked.extend(requests) or encode(requests)
        for options in (
            {},
            {"model": "style"},
            {"model": "style", "extra_body": {"lora": "style:0.5"}},
            {"model": "fake"},
        ):
            client.images.generate(**{"model": None, "prompt": "a cat"} | options)
        assert [request.lora for request in asked] == [None, "style", "style:0.5", None]
        with pytest.raises(openai.NotFoundError, match="one of its adapters: style, face"):
            client.images.generate(prompt="a cat", model="other")


def test_a_model_with_slashes_in_its_id_is_found():
    for name in ("owner/model", "/a/folder with spaces/model", "./models/ünïcode?.safetensors"):
        pipeline = FakePipeline()
        pipeline.spec["model"] = name
        with fake_client(pipeline) as client:
            assert client.models.retrieve(client.models.list().data[0].id).id == name


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"response_format": "file"}, "response_format"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"size": "64"}, "size"),
        ({"size": "65x64"}, "size"),
        ({"size": "64x4096"}, "size"),
        ({"size": "64x\uff16\uff14"}, "size"),
        ({"size": "1024x1024"}, "size"),  # above the server's pixel steps
        ({"prompt": ""}, "prompt"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 101}, "output_compression"),
        ({"extra_body": {"stream": True}}, "stream"),
        ({"extra_body": {"stream": 0}}, "stream"),
        ({"extra_body": {"num_inference_steps": 151}}, "num_inference_steps"),
        ({"n": 2, "extra_body": {"seed": MAX_SEED}}, "seed"),
    ],
)
def test_a_bad_value_is_named(client, options, param):
    with pytest.raises(openai.BadRequestError) as raised:
        client.images.generate(**SMALL | options)
    assert (raised.value.param, raised.value.type) == (param, "invalid_request_error")
    assert raised.value.code
    assert param in raised.value.body["message"]


def test_an_unknown_model_is_404(client):
    with pytest.raises(openai.NotFoundError, match="'tiny'") as raised:
        client.images.generate(model="dall-e-9", **SMALL)
    assert raised.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("send", "status"),
    [
        ({"method": "GET", "url": "/v1/nothing"}, 404),
        ({"method": "GET", "url": "/v1/images/generations"}, 405),
        ({"method": "POST", "url": "/v1/images/generations", "content": "{"}, 400),
        ({"method": "POST", "url": "/v1/images/generations", "content": "[" * 50_000}, 400),
        ({"method": "POST", "url": "/v1/images/generations", "content": b"\xff"}, 400),
        ({"method": "POST", "url": "/v1/images/generations", "json": {"prompt": "x" * 2**20}}, 413),
    ],
    ids=lambda value: str(value)[:60],
)
def test_every_error_under_v1_has_openais_shape(server, send, status):
    answer = httpx.request(**send | {"url": server.url + send["url"]})
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert "total;dur=" in answer.headers["server-timing"]
    assert httpx.get(f"{server.url}/nothing").json().keys() == {"detail", "request_id"}


def test_one_image_too_many_for_the_queue_ends_the_others():
    pipeline = FakePipeline()
    with (
        fake_client(pipeline, max_queue=3, batching="serial") as client,
        ThreadPoolExecutor(1) as threads,
    ):
        # One image runs and two wait, so one of the next two finds a place.
        pipeline.gate.clear()
        options = {"n": 3, "size": "64x64", "extra_body": {"num_inference_steps": 1}}
        held = threads.submit(client.images.generate, prompt="held", **options)
        metrics = f"{str(client.base_url).removesuffix('/v1/')}/metrics"
        wait_until(lambda: "benchlib_queue_length 2.0" in httpx.get(metrics).text, 60)
        with pytest.raises(openai.InternalServerError) as raised:
            client.images.generate(n=2, **SMALL)
        assert (raised.value.status_code, raised.value.code) == (503, "queue_full")
        assert int(raised.value.response.headers["retry-after"]) >= 1
        pipeline.gate.set()
        assert len(held.result(60).data) == 3
        client.images.generate(prompt="next", size="64x64", extra_body={"num_inference_steps": 1})
    steps = [prompt for call, prompt in pipeline.calls if call == "step"]
    assert steps.count("a lighthouse") == 0
    assert steps.count("next") == 1


def test_an_error_inside_ends_the_other_images_too():
    pipeline = FakePipeline()
    pipeline.fail_on = {"bad": ZeroDivisionError("secret")}
    with fake_client(pipeline) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            client.images.generate(prompt="bad", n=3, extra_body={"num_inference_steps": 1})
        assert (raised.value.status_code, raised.value.code) == (500, "failed")
        assert "secret" not in raised.value.response.text
        client.images.generate(**SMALL)


class Unwritable:
    def save(self, *_, **__):
        raise OSError(f"no room on {threading.current_thread().name}")


def test_a_file_that_cannot_be_written_is_a_500_that_the_log_explains(caplog):
    """The file was written on a thread of its own, not on the event loop's or the engine's thread."""
    pipeline = FakePipeline()
    pipeline.decode = lambda works: [Unwritable() for _ in works]
    with fake_client(pipeline) as client, pytest.raises(openai.InternalServerError) as failed:
        client.images.generate(prompt="a", n=2, extra_headers={"X-Request-ID": "f-1"})
    assert "the log says why under request id f-1" in failed.value.message
    assert "request f-1: its image could not be written" in caplog.text
    assert "OSError: no room on benchlib-files" in caplog.text
