#!/usr/bin/env bash
# diffusers 0.42.1, torchsde 0.2.6, on a CPU.
#
# Behaviour: DPMSolverSDEScheduler takes no generator. Its noise comes from a seed of its own, which
# is drawn anew for each image. After a step the scheduler can't be copied: the copy raises KeyError
# at a later step.
# One would guess: the `generator` of the pipeline's call decides on an image, and a copy of a
# scheduler steps as the scheduler does.
# Why it matters: a server that promises an image for a seed has to set the scheduler's own seed. A
# server that copies schedulers, to be able to repeat a step, fails with this one.
#
# Output seen:
#   the step takes a generator: False
#   two loops from one latent are equal: False
#   with noise_sampler_seed=1 they are equal: True
#   a scheduler that is copied before each step raises KeyError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  torch==2.13.0 diffusers==0.42.1 torchsde==0.2.6 scipy==1.17.1 numpy==2.4.6
venv/bin/python -W ignore - <<'PY'
import copy
import inspect
import sys

import torch
from diffusers import DPMSolverSDEScheduler

START = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def loop(copies=False, **options):
    scheduler = DPMSolverSDEScheduler(**options)
    scheduler.set_timesteps(6)
    latents = START * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        if copies:
            scheduler = copy.deepcopy(scheduler)
        output = scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
    return latents


takes_generator = "generator" in inspect.signature(DPMSolverSDEScheduler.step).parameters
print("the step takes a generator:", takes_generator)
unseeded = torch.equal(loop(), loop())
print("two loops from one latent are equal:", unseeded)
seeded = torch.equal(loop(noise_sampler_seed=1), loop(noise_sampler_seed=1))
print("with noise_sampler_seed=1 they are equal:", seeded)
raised = "nothing"
try:
    loop(copies=True, noise_sampler_seed=1)
except KeyError as error:
    raised = type(error).__name__
print("a scheduler that is copied before each step raises", raised)
holds = not takes_generator and not unseeded and seeded and raised == "KeyError"
sys.exit(0 if holds else "The behaviour has changed.")
PY
