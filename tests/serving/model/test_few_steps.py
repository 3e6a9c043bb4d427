"""Which steps and guidance a few-step model is made for, by its name, scheduler and UNet."""

import shutil
from types import SimpleNamespace

import pytest
from diffusers import EulerDiscreteScheduler, LCMScheduler, TCDScheduler

from benchlib import Workload, load_pipeline
from benchlib.serving.model.few_steps import few_steps_of
from benchlib.serving.model.models import tiny_folder

EULER = EulerDiscreteScheduler(timestep_spacing="trailing")
PLAIN = SimpleNamespace(config={"time_cond_proj_dim": None})


@pytest.mark.parametrize(
    ("name", "kind", "steps"),
    [
        ("stabilityai/sdxl-turbo", "SDXL Turbo", 1),
        ("Lykon/dreamshaper-xl-v2-turbo", "Turbo", 4),
        ("/models/sdxl_lightning_2step_unet.safetensors", "Lightning", 2),
        ("SG161222/RealVisXL_V4.0_Lightning", "Lightning", 4),
        ("~/Hyper-SDXL-8steps-lora.safetensors", "Hyper-SD", 8),
        ("dmd2_sdxl_4step_unet_fp16.safetensors", "DMD2", 4),
        ("latent-consistency/lcm-lora-sdxl", "LCM", 4),
        ("pcm_sdxl_smallcfg_16step.safetensors", "PCM", 16),
    ],
)
def test_a_published_name_says_what_the_model_is_made_for(name, kind, steps):
    found = few_steps_of([name], EULER, PLAIN)
    assert (found.kind, found.steps, found.guidance_scale) == (kind, steps, 0.0)
    assert found.showcase == {"num_inference_steps": steps, "guidance_scale": 0.0}
    assert found.advice is None


def test_hyper_sd_with_cfg_in_its_name_keeps_guidance():
    found = few_steps_of(
        ["ByteDance/Hyper-SD/Hyper-SDXL-12steps-CFG-lora.safetensors"], EULER, PLAIN
    )
    assert (found.kind, found.steps, found.guidance_scale) == ("Hyper-SD", 12, 7.5)


@pytest.mark.parametrize(
    "name",
    [
        "tiny",
        "sdxl",
        "sdxl-random",
        "stabilityai/stable-diffusion-xl-base-1.0",
        "/lightning/lcm/base",
        "sdxl-70step-photo",
        "helicoptcd",
        "balcmodel",
    ],
)
def test_any_other_name_says_nothing(name):
    assert few_steps_of([name], EULER, PLAIN) is None


def test_the_last_name_counts():
    names = ["stabilityai/sdxl-turbo", "sdxl_lightning_8step_lora.safetensors", "toy"]
    assert few_steps_of(names, EULER, PLAIN).steps == 8


@pytest.mark.parametrize(("scheduler", "kind"), [(LCMScheduler, "LCM"), (TCDScheduler, "TCD")])
def test_a_scheduler_of_few_steps_says_so(scheduler, kind):
    found = few_steps_of(["merged"], scheduler(), PLAIN)
    assert (found.kind, found.steps, found.guidance_scale) == (kind, 4, 0.0)


def test_a_unet_with_embedded_guidance_takes_a_scale():
    unet = SimpleNamespace(config={"time_cond_proj_dim": 256})
    found = few_steps_of(["merged"], LCMScheduler(), unet)
    assert found.showcase == {"num_inference_steps": 4, "guidance_scale": 8.0}


def test_leading_spacing_is_told():
    leading = EulerDiscreteScheduler(timestep_spacing="leading")
    advice = few_steps_of(["sdxl_lightning_4step"], leading, PLAIN).advice
    assert advice.startswith("its scheduler has leading spacing")
    assert few_steps_of(["plain"], leading, PLAIN) is None


def test_the_usual_request_of_a_few_step_model_has_its_steps_and_guidance(tmp_path):
    folder = tmp_path / "tiny-lightning-2steps"
    shutil.copytree(tiny_folder(), folder)
    pipe = load_pipeline(str(folder), device="cpu", torch_threads=1)
    showcase = pipe.spec["showcase"]
    own = {"num_inference_steps": 2, "guidance_scale": 0.0}
    assert showcase == {"width": 128, "height": 128} | own
    asked = Workload(guidance_scale=3).with_defaults(**showcase).request(0)
    assert (asked["num_inference_steps"], asked["guidance_scale"]) == (2, 3)
    assert Workload().with_defaults(**showcase).request(0)["guidance_scale"] == 0
    shown = dict(pipe._view().rows)
    assert shown["few steps"] == "'tiny-lightning-2steps' is the name of a Lightning model"
    assert shown["scheduler"].startswith("its scheduler has leading spacing")
    pipe.close()
