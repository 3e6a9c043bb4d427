"""A batch's steps against diffusers' own schedulers, over their configurations, without a model."""

from types import SimpleNamespace

import diffusers
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from benchlib.serving.model.denoise import Batch, Work
from benchlib.serving.model.schedulers import Schedules, step_options
from benchlib.serving.model.solvers import find_solver
from benchlib.serving.schemas import BadField

CPU = torch.device("cpu")
# A multiple of 16 values: else torch draws the last 16 otherwise in 16 bits, and ours are rounded.
SHAPE = (1, 4, 4, 5)
SIGMAS = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"]
NOISE = {
    "beta_start": st.sampled_from([0.00085, 0.0001]),
    "beta_end": st.sampled_from([0.012, 0.02]),
    "beta_schedule": st.sampled_from(["scaled_linear", "linear", "squaredcos_cap_v2"]),
    "timestep_spacing": st.sampled_from(["leading", "linspace", "trailing"]),
    "steps_offset": st.integers(0, 3),
    "rescale_betas_zero_snr": st.booleans(),
}
PREDICTIONS = {"prediction_type": st.sampled_from(["epsilon", "v_prediction", "sample"])}
FINAL = {"final_sigmas_type": st.sampled_from(["zero", "sigma_min"])}
SPACED = {"spacing": st.sampled_from([None, *SIGMAS])}
CLIPS = {"clip_sample": st.booleans(), "clip_sample_range": st.sampled_from([0.5, 1.0])}
OPTIONS = {
    "EulerDiscreteScheduler": NOISE | PREDICTIONS | FINAL | SPACED | {
        "interpolation_type": st.sampled_from(["linear", "log_linear"]),
        "timestep_type": st.sampled_from(["discrete", "continuous"]),
        "sigma_min": st.sampled_from([None, 0.05]), "sigma_max": st.sampled_from([None, 10.0]),
    },
    "EulerAncestralDiscreteScheduler": NOISE | PREDICTIONS,
    "DPMSolverMultistepScheduler": NOISE | PREDICTIONS | FINAL | SPACED | {
        "algorithm_type": st.sampled_from(["dpmsolver++", "sde-dpmsolver++"]),
        "solver_type": st.sampled_from(["midpoint", "heun"]), "solver_order": st.sampled_from([1, 2, 2, 2, 3]),
        "lower_order_final": st.booleans(), "euler_at_final": st.booleans(), "use_lu_lambdas": st.booleans(),
        "thresholding": st.sampled_from([False, False, False, True]),
    },
    "DDIMScheduler": NOISE | PREDICTIONS | CLIPS | {
        "set_alpha_to_one": st.booleans(), "thresholding": st.sampled_from([False, False, False, True]),
    },
    "LCMScheduler": NOISE | PREDICTIONS | CLIPS | {"timestep_scaling": st.sampled_from([10.0, 5.0])},
    "TCDScheduler": NOISE | PREDICTIONS | CLIPS,
}  # fmt: skip


def made(kind, options):
    """The scheduler, or None where its class refuses the options."""
    spacing = options.pop("spacing", None)
    if spacing is not None:
        options[spacing] = True
    try:
        return getattr(diffusers, kind)(**options)
    except (ValueError, NotImplementedError):
        return None


def output(step, dtype):
    """What a UNet might answer, the same for the stock loop and for ours."""
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(SHAPE, generator=generator).to(dtype)


def start(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    return generator, torch.randn(SHAPE, generator=generator).to(dtype)


def stock_steps(scheduler, steps, seed, dtype):
    """The loop of the stock pipeline."""
    scheduler.set_timesteps(steps, device=CPU)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    generator, noise = start(seed, dtype)
    latents = noise * scheduler.init_noise_sigma
    options = step_options(scheduler, generator)
    inputs = []
    for number, timestep in enumerate(scheduler.timesteps):
        inputs.append((scheduler.scale_model_input(latents, timestep), timestep))
        answer = output(number, dtype)
        latents = scheduler.step(answer, timestep, latents, **options, return_dict=False)[0]
    return inputs, latents


def make_work(schedules, steps, seed, dtype):
    schedule = schedules.find(None, steps)
    generator, noise = start(seed, dtype)
    scheduler = schedules.make_scheduler(None, steps, seed)
    return Work(
        request=SimpleNamespace(guidance_scale=1.0),
        seed=seed,
        schedule=schedule,
        scheduler=scheduler,
        step_options=step_options(scheduler, generator),
        generator=generator,
        latents=noise * schedule.init_noise_sigma,
        text=torch.zeros(1, 1, 1),
        pooled=torch.zeros(1, 1),
        time_ids=torch.zeros(1, 6),
    )


def same(one, other):
    """Equal to the bit, also where a schedule makes infinities of both."""
    return torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))


@pytest.mark.parametrize("kind", OPTIONS)
@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(data=st.data())
def test_steps_alone_are_those_of_the_scheduler_at_each_configuration(kind, data):
    # 1) A scheduler, and what it does by itself
    options = data.draw(st.fixed_dictionaries(OPTIONS[kind]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    steps = data.draw(st.sampled_from([1, 2, 3, 4, 7, 16]))
    scheduler = made(kind, dict(options))
    assume(scheduler is not None)
    schedules = Schedules(scheduler, CPU)
    try:
        inputs, expected = stock_steps(scheduler, steps, 1, dtype)
    except (NotImplementedError, ValueError, IndexError):
        with pytest.raises(BadField):
            schedules.find(None, steps)
        return

    # 2) Ours
    work = make_work(schedules, steps, 1, dtype)
    assert work.schedule.calls == len(inputs)
    for number, (stock_input, timestep) in enumerate(inputs):
        batch = Batch([work], rows=None, device=CPU)
        ours, timesteps = batch.inputs()
        assert same(ours, stock_input.to(dtype))
        assert timesteps.item() == float(timestep)
        batch.advance(output(number, dtype))
    assert work.failure is None
    assert work.finished
    assert same(work.latents, expected.to(dtype))


def test_most_configurations_have_a_solver_and_the_others_do_not():
    for options in ({}, {"use_karras_sigmas": True}, {"solver_type": "heun"}):
        assert find_solver(diffusers.DPMSolverMultistepScheduler(**options)) is not None
    for options in ({"solver_order": 3}, {"thresholding": True}, {"use_flow_sigmas": True}):
        assert find_solver(diffusers.DPMSolverMultistepScheduler(**options)) is None
    assert find_solver(diffusers.DDIMScheduler(thresholding=True)) is None
    assert find_solver(diffusers.DDIMScheduler(clip_sample=True)) is not None

    class Mine(diffusers.EulerDiscreteScheduler):
        """A user's class may step as it likes."""

    assert find_solver(Mine()) is None


@pytest.mark.parametrize("kind", OPTIONS)
def test_works_at_different_steps_move_as_they_do_alone(kind):
    schedules = Schedules(getattr(diffusers, kind)(prediction_type="v_prediction"), CPU)
    counts = (3, 5, 20)
    together = [
        make_work(schedules, steps, seed, torch.float32) for seed, steps in enumerate(counts)
    ]
    while unfinished := [work for work in together if not work.finished]:
        answers = [output(work.steps_done, torch.float32) for work in unfinished]
        batch = Batch(unfinished, rows=None, device=CPU)
        batch.inputs()
        batch.advance(torch.cat(answers))
    for seed, steps in enumerate(counts):
        alone = make_work(schedules, steps, seed, torch.float32)
        while not alone.finished:
            batch = Batch([alone], rows=None, device=CPU)
            batch.inputs()
            batch.advance(output(alone.steps_done, torch.float32))
        assert torch.equal(alone.latents, together[seed].latents)
