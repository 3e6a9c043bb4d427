"""Every sampler against the stock pipeline, alone and in a batch; its faults reach no other."""

import copy
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import diffusers
import httpx
import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler
from diffusers.utils import logging as diffusers_logging
from packaging.version import Version

from benchlib.serving.engine.engine import Engine
from benchlib.serving.engine.options import EngineOptions
from benchlib.serving.model.loading import load_pipeline
from benchlib.serving.model.random_models import tiny_folder
from benchlib.serving.model.schedulers import Schedules
from benchlib.serving.model.torch_thread import on_torch_thread
from benchlib.serving.scheduler_names import SCHEDULERS
from benchlib.serving.schemas import BadField, GenerateRequest
from benchlib.serving.server import serve

WITH_SOLVER = [
    "euler", "euler-karras", "euler-trailing", "euler-a", "dpmpp-2m", "dpmpp-2m-karras", "dpmpp-2m-sde",
    "dpmpp-2m-sde-karras", "ddim", "lcm", "tcd",
]  # fmt: skip
TWO_CALLS = {
    "dpmpp-sde",
    "dpmpp-sde-karras",
    "dpm2",
    "dpm2-karras",
    "dpm2-a",
    "dpm2-a-karras",
    "heun",
    "heun-karras",
}


def request(**changes):
    fields = {"prompt": "a lighthouse", "num_inference_steps": 4, "width": 64, "height": 64}
    return GenerateRequest(**fields | {"seed": 1} | changes)


def stock_scheduler(config, name, seed=1):
    """As users build it."""
    named = SCHEDULERS[name]
    diffusers_logging.set_verbosity_error()
    scheduler = getattr(diffusers, named.class_name).from_config(config, **named.changes)
    diffusers_logging.set_verbosity_warning()
    if "noise_sampler_seed" in scheduler.config:  # it takes no generator
        scheduler.noise_sampler_seed = seed
    return scheduler


def stock_latents(pipe, scheduler, wanted, noise=None):
    generator = torch.Generator("cpu").manual_seed(wanted.seed)
    if noise is not None:
        torch.randn(noise.shape, generator=generator)  # what follows is the noise of the steps
    stock = copy.copy(pipe.diffusers)
    stock.set_progress_bar_config(disable=True)
    stock.scheduler = scheduler
    return on_torch_thread(
        stock,
        wanted.prompt,
        num_inference_steps=wanted.num_inference_steps,
        guidance_scale=wanted.guidance_scale,
        width=wanted.width,
        height=wanted.height,
        generator=generator,
        latents=noise,
        output_type="latent",
    ).images


def run(pipe, works):
    """Steps the works together until all are finished."""
    unfinished = list(works)
    while unfinished:
        on_torch_thread(pipe.step, unfinished)
        for work in unfinished:
            if work.failure is not None:
                raise work.failure
        unfinished = [work for work in works if not work.finished]
    return [work.latents for work in works]


def latents(pipe, *wanted):
    return run(pipe, on_torch_thread(pipe.encode, wanted))


@pytest.fixture(scope="module")
def config(tiny):
    """The scheduler's configuration as the base model publishes it: no option is null."""
    own = tiny.diffusers.scheduler.config
    return {key: value for key, value in own.items() if value is not None}


# -- equal to stock --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULERS)
def test_latents_are_bit_identical_to_the_stock_call(tiny, config, name):
    wanted = request(scheduler=name)
    [ours] = latents(tiny, wanted)
    assert torch.equal(ours, stock_latents(tiny, stock_scheduler(config, name), wanted))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_latents_of_one_step_are_bit_identical_to_the_stock_call(tiny, config, name):
    wanted = request(scheduler=name, num_inference_steps=1)
    [ours] = latents(tiny, wanted)
    assert torch.equal(ours, stock_latents(tiny, stock_scheduler(config, name), wanted))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_latents_are_bit_identical_in_16_bits(config, dtype):
    pipe = load_pipeline("tiny", device="cpu", dtype=dtype)
    for name in ("euler-trailing", "euler-a", "dpmpp-2m-sde-karras", "ddim", "lcm", "tcd", "heun"):
        wanted = request(scheduler=name, num_inference_steps=2)
        [ours] = latents(pipe, wanted)
        stock = stock_latents(pipe, stock_scheduler(config, name), wanted)
        assert torch.equal(ours, stock), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_latents_are_bit_identical_on_a_gpu(config, dtype):
    pipe = load_pipeline("tiny", device="cuda", dtype=dtype)
    for name in (*WITH_SOLVER, "heun", "dpmpp-sde", "unipc"):
        if (
            dtype != "float32"
            and name in ("euler-a", "lcm")
            and Version(torch.__version__) < Version("2.13")
        ):
            continue  # an older torch draws other noise in 16 bits
        wanted = request(scheduler=name)
        [ours] = latents(pipe, wanted)
        noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
        noise = noise.to("cuda", getattr(torch, dtype))
        stock = stock_latents(pipe, stock_scheduler(config, name), wanted, noise)
        assert torch.equal(ours, stock), name


def test_the_most_used_have_a_solver(tiny):
    for name in SCHEDULERS:
        schedule = tiny.schedules.find(name, 4)
        assert (schedule.solver is not None) == (name in WITH_SOLVER), name
        assert schedule.calls == (7 if name in TWO_CALLS else 5 if name == "pndm" else 4)


def test_samplers_share_batches_and_each_image_stays_its_own(tiny):
    """Each work has its own number of steps, guidance and noise, whoever is beside it."""
    names = [*WITH_SOLVER, "heun", "dpmpp-sde", "pndm", "unipc", "dpm2-a"]
    wanted = [
        request(
            scheduler=name,
            seed=number,
            num_inference_steps=4 + number % 3,
            guidance_scale=(7.5, 1.0)[number % 2],
        )
        for number, name in enumerate(names)
    ]
    alone = [latents(tiny, one)[0] for one in wanted]
    together = on_torch_thread(tiny.encode, wanted)
    first, others = together[:8], together[8:]
    on_torch_thread(tiny.step, first)  # the others join later
    run(tiny, first + others)
    for one, work, expected in zip(wanted, together, alone, strict=True):
        difference = (work.latents - expected).abs().max()
        assert difference <= 1e-4 * expected.std(), one.scheduler


def test_the_noise_of_dpmpp_sde_is_that_of_the_seed(tiny):
    [first], [again], [other] = (
        latents(tiny, request(scheduler="dpmpp-sde", seed=seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# -- steps that fail -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["euler-a", "dpmpp-2m", "lcm", "heun", "dpmpp-sde", "unipc"])
def test_a_step_that_runs_out_of_memory_moves_no_work_and_can_be_repeated(tiny, monkeypatch, name):
    wanted = [request(scheduler=name, seed=seed) for seed in (1, 2)]
    expected = [latents(tiny, one)[0] for one in wanted]
    works = on_torch_thread(tiny.encode, wanted)
    on_torch_thread(tiny.step, works)
    unet = tiny._unet

    def out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tiny, "_unet", out_of_memory)
    for together in (works, works[:1]):
        with pytest.raises(torch.OutOfMemoryError):
            on_torch_thread(tiny.step, together)
    monkeypatch.setattr(tiny, "_unet", unet)
    assert [work.steps_done for work in works] == [1, 1]
    for work, latent in zip(works, expected, strict=True):
        [ours] = run(tiny, [work])
        assert (ours - latent).abs().max() <= 1e-4 * latent.std()


def fail_at(monkeypatch, method):
    """Lets `method` of Heun's scheduler raise for a work of five steps, later than at first."""
    original = getattr(HeunDiscreteScheduler, method)
    if method == "set_timesteps":

        def failing(self, steps, **options):
            if steps == 5:
                raise ZeroDivisionError("in the scheduler")
            return original(self, steps, **options)

    else:

        def failing(self, *arguments, **options):
            if len(self.timesteps) == 2 * 5 - 1 and self.step_index == 1:
                raise ZeroDivisionError("in the scheduler")
            return original(self, *arguments, **options)

    monkeypatch.setattr(HeunDiscreteScheduler, method, failing)


@pytest.mark.parametrize("batching", ["serial", "dynamic", "continuous"])
@pytest.mark.parametrize("method", ["set_timesteps", "scale_model_input", "step"])
def test_a_scheduler_that_fails_ends_its_own_request_alone(tiny, monkeypatch, batching, method):
    good = [
        request(scheduler=name, num_inference_steps=3, seed=seed)
        for seed, name in enumerate(["heun", "dpmpp-sde", "euler-a", None])
    ]
    bad = request(scheduler="heun", num_inference_steps=5)
    expected = tiny.generate(good).images
    tiny.schedules.find("heun", 5)  # so that the request is admitted
    options = EngineOptions(batching=batching, max_wait_ms=300, max_batch_size=5, sizes=[(64, 64)])
    engine = Engine(tiny, options)
    engine.start()
    assert engine.settled.wait(60)
    fail_at(monkeypatch, method)
    if method == "set_timesteps":
        original = tiny.schedules.make_scheduler

        def lay_out_anew(name, steps, seed):
            made = original(name, steps, seed)
            if made is not None:
                made.set_timesteps(steps, device="cpu")
            return made

        monkeypatch.setattr(tiny.schedules, "make_scheduler", lay_out_anew)
    try:
        jobs = [engine.submit(one) for one in (*good[:2], bad, *good[2:])]
        failed = jobs.pop(2)
        with pytest.raises(ZeroDivisionError, match="in the scheduler"):
            failed.future.result(60)
        for job, image in zip(jobs, expected, strict=True):
            difference = np.asarray(job.future.result(60), int) - np.asarray(image, int)
            assert np.abs(difference).max() <= 1
    finally:
        engine.stop()


# -- admission -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "steps"), [("lcm", 51), ("tcd", 60)])
def test_a_number_of_steps_that_a_scheduler_refuses_is_named(tiny, name, steps):
    good = request(scheduler=name, num_inference_steps=4)
    with pytest.raises(ValueError, match=rf"^num_inference_steps: .*{steps} steps"):
        tiny.generate([good, request(scheduler=name, num_inference_steps=steps)])
    assert tiny.generate(good).images


@pytest.mark.parametrize("batching", ["serial", "dynamic", "continuous"])
def test_a_refused_number_of_steps_is_a_bad_request_and_the_others_get_images(tiny, batching):
    options = {"max_wait_ms": 200, "max_batch_size": 4, "sizes": [(64, 64)]}
    with serve(tiny, name="refusing", batching=batching, **options) as server:

        def ask(steps, route="/benchmark/generate", **more):
            body = {"prompt": "a", "num_inference_steps": steps, "scheduler": "lcm"} | more
            if route.startswith("/v1"):
                body["size"] = "64x64"
            else:
                body |= {"width": 64, "height": 64}
            return httpx.post(server.url + route, json=body, timeout=60)

        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(ask, (2, 60, 2, 2)))
        assert [answer.status_code for answer in answers] == [200, 422, 200, 200]
        assert answers[1].json()["detail"][0]["loc"] == ["body", "num_inference_steps"]
        refused = ask(60, "/v1/images/generations")
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "num_inference_steps"
        assert ask(2, "/v1/images/generations", scheduler="heun").status_code == 200
        for route, status in (("/benchmark/generate", 422), ("/v1/images/generations", 400)):
            unknown = ask(2, route, scheduler="dpm++")
            assert unknown.status_code == status
            assert "dpmpp-2m-karras" in unknown.text


def test_calls_of_the_unet_count_and_not_steps(tiny):
    engine = Engine(tiny, EngineOptions(sizes=[(64, 64)], batching="serial"))
    engine.start()
    assert engine.settled.wait(60)
    job = engine.submit(request(scheduler="heun", num_inference_steps=5))
    job.future.result(60)
    assert len(job.work.step_s) == job.work.steps_done == 9
    engine.stop()
    bounded = {"batching": "serial", "sizes": [(64, 64)], "max_pixel_steps": 64 * 64 * 5}
    with serve(tiny, name="bounded-calls", **bounded) as server:
        body = {"prompt": "a", "width": 64, "height": 64, "num_inference_steps": 3}
        url = f"{server.url}/benchmark/generate"
        assert httpx.post(url, json=body | {"scheduler": "heun"}, timeout=60).status_code == 200
        body["num_inference_steps"] = 4
        assert httpx.post(url, json=body, timeout=60).status_code == 200
        refused = httpx.post(url, json=body | {"scheduler": "heun"}, timeout=60)
        assert refused.status_code == 422
        assert "takes 7 steps of the model" in refused.text


def test_only_so_many_schedules_are_kept(tiny, monkeypatch):
    schedules = Schedules(tiny.diffusers.scheduler, torch.device("cpu"))
    monkeypatch.setattr("benchlib.serving.model.schedulers.MOST_SCHEDULES", 3)
    for steps in range(1, 7):
        assert schedules.find("heun", steps).calls == 2 * steps - 1
    assert [steps for _, steps in schedules._laid_out] == [4, 5, 6]


# -- at load ---------------------------------------------------------------------------------------


def test_the_scheduler_chosen_at_load_is_that_of_stock_and_a_request_may_name_another(tiny):
    pipe = load_pipeline("tiny", device="cpu", scheduler="dpmpp-2m-karras")
    assert pipe.spec["scheduler"] == "dpmpp-2m-karras"
    stock = pipe.diffusers.scheduler
    assert type(stock).__name__ == "DPMSolverMultistepScheduler"
    assert stock.config.use_karras_sigmas
    [ours] = latents(pipe, request())
    assert torch.equal(ours, stock_latents(pipe, copy.deepcopy(stock), request()))
    assert torch.equal(ours, latents(tiny, request(scheduler="dpmpp-2m-karras"))[0])
    # The configuration of a named scheduler comes from the model's own, without Karras.
    assert torch.equal(latents(pipe, request(scheduler="euler"))[0], latents(tiny, request())[0])


def test_an_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match=r"scheduler: 'dpm\+\+' is not known; use one of .*lcm"):
        load_pipeline("tiny", scheduler="dpm++")
    with pytest.raises(ValueError, match=r"use one of euler, .*tcd"):
        request(scheduler="dpm++")


def test_a_scheduler_that_this_model_can_not_have_is_named():
    odd = diffusers.EulerDiscreteScheduler(beta_schedule="linear")
    odd.register_to_config(beta_schedule="cosine")
    schedules = Schedules(odd, torch.device("cpu"))
    with pytest.raises(BadField, match=r"^scheduler: this model can't take 'ddim' \(cosine"):
        schedules.find("ddim", 4)
    image_itself = diffusers.EulerDiscreteScheduler(prediction_type="sample")
    schedules = Schedules(image_itself, torch.device("cpu"))
    assert schedules.find(None, 4).calls == 4
    with pytest.raises(BadField, match=r"^scheduler: EulerAncestral.* can't step with this model"):
        schedules.find("euler-a", 4)


@pytest.mark.parametrize(
    ("kind", "options", "nearest"),
    [
        ("PNDMScheduler", {}, 4),
        ("LCMScheduler", {"original_inference_steps": 3}, 2),
    ],
)
def test_a_model_whose_scheduler_takes_few_numbers_of_steps_warms_up(
    tmp_path, kind, options, nearest
):
    folder = tmp_path / "own-scheduler"
    shutil.copytree(tiny_folder(), folder)
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    written = json.dumps({"_class_name": kind, **betas, **options})
    (folder / "scheduler/scheduler_config.json").write_text(written)
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", kind]
    (folder / "model_index.json").write_text(json.dumps(index))
    pipe = load_pipeline(str(folder), device="cpu", torch_threads=1)
    assert pipe.schedules.nearest_steps(2) == nearest
    assert pipe.predict_s(64, 64, 20) > 0
    with serve(pipe, name="few", sizes=[(64, 64)], max_batch_size=2) as server:
        assert server.spec["step_times"]["64x64"]["step_s"].keys() == {"1", "2", "4"}
