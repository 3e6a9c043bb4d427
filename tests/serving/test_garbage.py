"""What a request held is free once it has its answer, though Python looks for no circles."""

import gc
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import suppress

import httpx
import pytest
import torch
from PIL.Image import Image

from benchlib.serving.engine.jobs import Job
from benchlib.serving.model.denoise import Work
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.serving.schemas import GenerateRequest
from benchlib.serving.server import serve
from benchmarks.fakes.faulty_pipeline import FaultyPipeline, smallest_pipeline
from tests.serving.replicas.test_app_over_fleet import served, with_engines

HEAVY = (Job, GenerateRequest, Work, Image, torch.Tensor, Future, BaseException)
BODY = {"num_inference_steps": 2, "width": 64, "height": 64}
BODIES = {
    "/benchmark/generate": BODY | {"prompt": "a cat"},
    "/v1/images/generations": {
        "prompt": "a cat",
        "n": 2,
        "size": "64x64",
        "num_inference_steps": 2,
    },
}
IDLE = {"benchlib_queue_length 0.0", "benchlib_running_batch 0.0"}
FAULTS = ["encode-error", "step-error", "decode-error", "nan", "encode-memory", "decode-memory"]


@pytest.fixture(scope="module")
def pipeline():
    return FaultyPipeline(on_torch_thread(smallest_pipeline))


def heavy_garbage():
    """What only the search for circles can free, of the kinds that hold memory."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = Counter(type(thing).__name__ for thing in gc.garbage if isinstance(thing, HEAVY))
    gc.garbage.clear()
    gc.collect()
    return found


@pytest.fixture
def no_search():
    """Python looks for no circles, and starts without any."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("batching", ["serial", "dynamic", "continuous"])
@pytest.mark.usefixtures("no_search")
def test_an_image_leaves_nothing_behind(pipeline, batching):
    with serve(pipeline, batching=batching, name=batching) as server, httpx.Client() as client:
        heavy_garbage()  # of the start
        for path, body in BODIES.items():
            answer = client.post(server.url + path, json=body)
            assert answer.status_code == 200, answer.text
        assert not heavy_garbage()


@pytest.mark.usefixtures("no_search")
def test_a_fleet_leaves_nothing_behind(pipeline):
    with served(with_engines(pipeline, pipeline)) as at:
        heavy_garbage()
        for path, body in BODIES.items():
            assert at.client.post(path, json=body).status_code == 200
        failed = at.client.post("/benchmark/generate", json=BODY | {"prompt": "step-error here"})
        assert failed.status_code == 500
        assert not heavy_garbage()


@pytest.mark.usefixtures("no_search")
def test_generate_leaves_nothing_behind(pipeline):
    heavy_garbage()
    pipeline.generate(GenerateRequest(prompt="a cat", **BODY))
    pipeline._armed = RuntimeError("planted")
    with pytest.raises(RuntimeError, match="planted"):
        pipeline.generate(GenerateRequest(prompt="a cat", **BODY))
    assert not heavy_garbage()


@pytest.mark.usefixtures("no_search")
def test_a_fault_leaves_nothing_behind(pipeline):
    with serve(pipeline, batching="dynamic", name="faults") as server, httpx.Client() as client:
        heavy_garbage()
        for fault in FAULTS:
            body = BODY | {"prompt": f"{fault} here", "seed": 5}
            answer = client.post(f"{server.url}/benchmark/generate", json=body, timeout=60)
            assert answer.status_code == (200 if "memory" in fault else 500), answer.text
        assert not heavy_garbage()


@pytest.mark.usefixtures("no_search")
def test_a_deadline_and_a_client_that_leaves_leave_nothing_behind(pipeline):
    with serve(pipeline, deadline_s=0.1, name="late") as server, httpx.Client() as client:
        heavy_garbage()
        body = BODY | {"prompt": "late", "num_inference_steps": 150, "width": 192}
        assert client.post(f"{server.url}/benchmark/generate", json=body).status_code == 504
        with suppress(httpx.TimeoutException):  # a busy machine may see the answer first
            client.post(f"{server.url}/benchmark/generate", json=body, timeout=0.05)
        while not IDLE.issubset(client.get(f"{server.url}/metrics").text.splitlines()):
            time.sleep(0.1)
        assert not heavy_garbage()
