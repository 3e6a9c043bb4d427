"""Requests of several adapters at once: fresh stock images, no shared step, nobody starves."""

import copy
import json
import threading
from functools import cache
from itertools import pairwise

import httpx
import numpy as np
import pytest
import torch

from benchlib.serving.engine.engine import Engine
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.engine.policies import PATIENCE, Continuous
from benchlib.serving.engine.simulate import SimulatedTask, simulate
from benchlib.serving.engine.step_times import StepTimes, StepTimesBySize
from benchlib.serving.model.adapters import LoraPlan, _load
from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.serving.schemas import GenerateRequest
from benchlib.serving.server import serve

SIZE = (64, 64)
LORAS = {"style": "random", "face": "random-4"}


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline("tiny", device="cpu", loras=LORAS)
    usual = {"width": 64, "height": 64, "num_inference_steps": 2}
    pipe.spec = pipe.spec | {"showcase": usual}
    # PIL's levels are too coarse for a tolerance of 1e-4.
    pipe._pictures = lambda pixels: list(pixels.permute(0, 2, 3, 1).numpy())
    return pipe


@cache
def fresh_pixels(request):
    """The image of a stock pipeline with the request's adapter alone."""
    stock = copy.copy(load_pipeline("tiny", device="cpu").diffusers)
    stock.set_progress_bar_config(disable=True)
    if request.lora is not None:
        name, _, scale = request.lora.partition(":")
        weights = LoraPlan({name: LORAS[name]}, None, ()).read(name, stock)
        _load(stock, weights, "only", ["unet"])
        stock.set_adapters("only", float(scale or 1))
    return on_torch_thread(
        stock,
        request.prompt,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        width=64,
        height=64,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="np",
    ).images[0]


@pytest.mark.parametrize("batching", ["continuous", "dynamic", "serial"])
def test_everybody_gets_a_fresh_stock_pipelines_image(pipe, batching, monkeypatch):
    asked = []
    for seed, lora in enumerate(
        [None, "style", "face", "style", "style:0.5", None, "face", "style"]
    ):
        guidance = 0.0 if seed == 3 else 7.5
        asked.append(
            GenerateRequest(
                prompt="a lighthouse",
                num_inference_steps=2 + seed % 3,
                guidance_scale=guidance,
                width=64,
                height=64,
                seed=seed,
                lora=lora,
            )
        )
    stepped = []
    step = pipe.step

    def watched(works, *, rows=None):
        stepped.append({work.request.lora for work in works})
        return step(works, rows=rows)

    engine = Engine(pipe, EngineOptions(batching=batching, max_batch_size=4))
    engine.start()
    assert engine.settled.wait(120)
    assert engine.failure is None
    monkeypatch.setattr(pipe, "step", watched)
    try:
        jobs = [engine.submit(request) for request in asked]
        images = [job.future.result(120) for job in jobs]
    finally:
        engine.stop()
    for request, image in zip(asked, images, strict=True):
        difference = np.abs(image - fresh_pixels(request)).max()
        assert difference <= 1e-4, request.lora
        if batching == "serial":
            assert difference == 0, request.lora
    assert all(len(loras) == 1 for loras in stepped)
    # All were there early, so that requests of one adapter run one after the other.
    changes = sum(one != other for one, other in pairwise(stepped))
    assert changes < len(asked)


def test_warm_up_measures_what_a_switch_costs(pipe):
    engine = Engine(pipe, EngineOptions(max_batch_size=1))
    engine.start()
    assert engine.settled.wait(120)
    try:
        times = engine.spec["step_times"]["64x64"]
        assert times["switch_s"] > 0
        assert times["lora_ratio"] >= 1
        json.dumps(engine.spec)
        read = StepTimesBySize.from_spec(engine.spec["step_times"])[SIZE]
        assert read.switch_s == times["switch_s"]
        assert read.step(2, "style") == read.step(2) * times["lora_ratio"]
    finally:
        engine.stop()


def test_an_unknown_adapter_is_refused_by_both_routes(pipe):
    body = {"prompt": "a", "num_inference_steps": 1, "width": 64, "height": 64}
    images = {"prompt": "a", "num_inference_steps": 1, "size": "64x64"}
    with serve(pipe, name="adapters") as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/ready").json()["spec"]["loras"] == ["style", "face"]
        refused = client.post("/benchmark/generate", json=body | {"lora": "other"})
        assert refused.status_code == 422
        assert refused.json()["detail"] == [
            {
                "loc": ["body", "lora"],
                "msg": "there is no adapter 'other'; there are style, face",
                "type": "value_error",
            }
        ]
        refused = client.post("/v1/images/generations", json=images | {"lora": "other"})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "lora"
        refused = client.post("/benchmark/generate", json=body | {"lora": "style:x"})
        assert refused.status_code == 422
        assert "'x' is no scale" in refused.json()["detail"][0]["msg"]
    assert not any(thread.name.startswith("benchlib-server") for thread in threading.enumerate())


def test_a_request_with_an_adapter_is_answered():
    body = {"prompt": "a", "num_inference_steps": 1, "width": 64, "height": 64}
    images = {"prompt": "a", "num_inference_steps": 1, "size": "64x64", "seed": 3}
    options = {"device": "cpu", "loras": LORAS, "sizes": [SIZE], "max_batch_size": 1}
    with (
        serve("tiny", name="answered", **options) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        answer = client.post("/benchmark/generate", json=body | {"lora": "style:0.80"})
        assert answer.status_code == 200
        assert "lora" not in answer.json()
        pictures = set()
        for lora in (None, "style", "style:1.0", "face"):
            made = client.post("/v1/images/generations", json=images | {"lora": lora})
            assert made.status_code == 200
            pictures.add(made.json()["data"][0]["b64_json"])
        assert len(pictures) == 3


# ---- the policy


COSTLY = StepTimes({1: 1.0, 8: 1.0}, {1: 0.0}, {1: 0.0}, switch_s=4.0)


def simulated(arrivals, times=COSTLY):
    """When each of (arrived_s, steps, lora) is done, by continuous batching."""
    tasks = [SimulatedTask(SIZE, 1, steps, at, lora=lora) for at, steps, lora in arrivals]
    finished = simulate(Continuous(lambda _: times, 4), tasks, lambda _: times)
    return [one.done_s for one in finished]


def test_a_dear_switch_lets_those_of_the_present_adapter_go_first():
    """The request for "b" came first, but two of "a" would have made it switch there and back."""
    arrivals = [(0.0, 2, "a"), (1.0, 3, "b"), (2.0, 3, "a")]
    dear_s = simulated(arrivals)
    free_s = simulated(arrivals, StepTimes({1: 1.0, 8: 1.0}, {1: 0.0}, {1: 0.0}))
    assert dear_s[2] < dear_s[1]
    assert free_s[1] < free_s[2]


def test_a_stream_of_one_adapter_delays_another_by_the_bound_and_no_more():
    stream = [(0.9 * number, 1, "a") for number in range(200)]
    waiting = (5.0, 2, "b")
    done_s = simulated(sorted([*stream, waiting]))
    place = sorted([*stream, waiting]).index(waiting)
    alone_s = 4.0 + 2.0
    latest_s = waiting[0] + PATIENCE * alone_s
    ahead_s = sum(steps for at, steps, _ in stream if at <= latest_s)
    assert done_s[place] <= latest_s + ahead_s + alone_s
    assert done_s[place] < done_s[-1]
