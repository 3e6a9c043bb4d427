"""A seeded request gives the stock pipeline's image in any batch. Uses the real tiny model."""

import copy
import threading
from functools import cache

import numpy as np
import psutil
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchlib.serving.engine.engine import Engine
from benchlib.serving.engine.jobs import Cancelled, DoesNotFit
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.model.pipeline import SDXLPipeline
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.serving.schemas import GenerateRequest

requests = st.builds(
    GenerateRequest,
    prompt=st.sampled_from(["a lighthouse", "a cat on a table", "many words " * 30]),
    negative_prompt=st.sampled_from([None, "", "blurry"]),
    num_inference_steps=st.integers(1, 8),
    guidance_scale=st.sampled_from([0.0, 1.0, 7.5]),
    width=st.sampled_from([64, 128]),
    height=st.just(64),
    seed=st.integers(0, 2),
)


@cache
def stock_pixels(pipe, request):
    """The stock call's image of the request: (height, width, 3), float32, from 0 to 1."""
    stock = pipe.diffusers
    stock.set_progress_bar_config(disable=True)
    return on_torch_thread(
        stock,
        request.prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        width=request.width,
        height=request.height,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="np",
    ).images[0]


class Exact(SDXLPipeline):
    """A pipeline whose images are float arrays.

    PIL's levels are too coarse for a tolerance of 1e-4.
    """

    def _pictures(self, pixels):
        return list(pixels.permute(0, 2, 3, 1).numpy())


def exact(pipe, scheduler=None):
    stock = copy.copy(pipe.diffusers)
    if scheduler is not None:
        stock.scheduler = scheduler.from_config(stock.scheduler.config)
    return Exact(
        stock, spec=pipe.spec | {"showcase": {"width": 64, "height": 64, "num_inference_steps": 2}}
    )


@pytest.fixture(scope="module")
def pipe(tiny):
    return exact(tiny)


@pytest.fixture(scope="module", params=["continuous", "dynamic"])
def engine(pipe, request):
    options = EngineOptions(batching=request.param, max_batch_size=4, max_wait_ms=5)
    engine = Engine(pipe, options)
    engine.start()
    assert engine.settled.wait(120)
    assert engine.failure is None
    yield engine
    engine.stop()


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    arrivals=st.lists(st.tuples(requests, st.integers(0, 3), st.booleans()), min_size=1, max_size=6)
)
def test_everybody_gets_the_stock_pipelines_image(engine, pipe, arrivals):
    """Each request arrives some steps after the last one. Some are cancelled a step later."""
    steps = threading.Semaphore(0)
    engine.on_step = lambda *_: steps.release()

    def after(count):
        for _ in range(count):
            while (engine.running or engine.waiting) and not steps.acquire(timeout=0.01):
                pass

    jobs = []
    for request, gap, leaves in arrivals:
        after(gap)
        jobs.append(engine.submit(request))
        if leaves:
            after(1)
            engine.cancel(jobs[-1])
    for (request, _, leaves), job in zip(arrivals, jobs, strict=True):
        try:
            image = job.future.result(60)
        except Cancelled:
            assert leaves
            continue
        difference = np.abs(image - stock_pixels(pipe, request)).max()
        assert difference <= 1e-4
        if len(arrivals) == 1:
            assert difference == 0


@settings(max_examples=4, deadline=None)
@given(request=requests)
def test_alone_it_is_the_same_to_the_bit(engine, pipe, request):
    np.testing.assert_array_equal(
        engine.submit(request).future.result(60), stock_pixels(pipe, request)
    )


MIXED = [
    GenerateRequest(prompt="a", num_inference_steps=4, width=64, height=64, seed=1),
    GenerateRequest(
        prompt="b", num_inference_steps=2, width=64, height=64, seed=2, guidance_scale=0
    ),
    GenerateRequest(
        prompt="a", num_inference_steps=3, width=64, height=64, seed=3, negative_prompt=""
    ),
]


@pytest.mark.parametrize(
    "scheduler", [None, EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler]
)
def test_a_step_that_fails_moves_nobody_and_can_be_taken_again(tiny, scheduler, monkeypatch):
    pipe = exact(tiny, scheduler)
    works = on_torch_thread(pipe.encode, MIXED)
    on_torch_thread(pipe.step, works)
    before = [work.latents for work in works]
    unet = pipe._unet

    def short_of_memory(*args, **options):
        unet.forward(*args, **options)
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(pipe, "_unet", short_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            on_torch_thread(pipe.step, works)
    assert [work.steps_done for work in works] == [1, 1, 1]
    assert all(work.latents is latents for work, latents in zip(works, before, strict=True))
    for work, request in zip(works, MIXED, strict=True):
        while not work.finished:
            on_torch_thread(pipe.step, [work])
        [image] = on_torch_thread(pipe.decode, [work])
        assert np.abs(image - stock_pixels(pipe, request)).max() <= 1e-4


@pytest.mark.parametrize("scheduler", [None, EulerAncestralDiscreteScheduler])
def test_padding_changes_no_image(tiny, scheduler):
    pipe = exact(tiny, scheduler)
    works = on_torch_thread(pipe.encode, MIXED)
    while moving := [work for work in works if not work.finished]:
        on_torch_thread(pipe.step, moving, rows=8)
    for image, request in zip(on_torch_thread(pipe.decode, works), MIXED, strict=True):
        assert np.abs(image - stock_pixels(pipe, request)).max() <= 1e-4


def test_on_the_cpu_a_size_beyond_the_free_memory_is_refused(engine, monkeypatch):
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=2**20))
    with pytest.raises(DoesNotFit, match="256x64 does not fit"):
        engine.submit(GenerateRequest(prompt="a", width=256, height=64)).future.result(10)
    monkeypatch.undo()
    assert engine.submit(MIXED[0]).future.result(60).shape == (64, 64, 3)
