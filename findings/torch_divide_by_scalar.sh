#!/usr/bin/env bash
# torch 2.11.0 with CUDA 13.0, on one H200. (Needs a GPU.)
#
# Behaviour: a CUDA tensor divided by a scalar tensor that lies on the CPU is multiplied by the
# reciprocal. Divided by the same scalar on the GPU it is divided. The quotients differ by a bit.
# One would guess: the place of a scalar changes the speed of a division and not its result. On a
# CPU that holds.
# Why it matters: diffusers keeps its noise levels on the CPU. A server that moves the levels to
# the GPU, so that requests at different steps share one kernel, makes other images than the stock
# pipeline. In float16 it took 20 steps to show.
#
# Output seen:
#   cpu, sigma 14.6146: 0.0% change with the scalar's place, 18.9% differ from the reciprocal's product
#   cuda, sigma 14.6146: 18.9% change with the scalar's place, 0.0% differ from the reciprocal's product
#   cpu, sigma 3.7: 0.0% change with the scalar's place, 38.5% differ from the reciprocal's product
#   cuda, sigma 3.7: 38.5% change with the scalar's place, 0.0% differ from the reciprocal's product
#   cpu, sigma 0.7071: 0.0% change with the scalar's place, 41.5% differ from the reciprocal's product
#   cuda, sigma 0.7071: 41.5% change with the scalar's place, 0.0% differ from the reciprocal's product
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.11.0 numpy==2.4.6
if ! venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "skipped: no CUDA GPU"
  exit 0
fi
venv/bin/python - <<'PY'
import sys

import torch

numbers = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))


def differing_share(device, sigma):
    x = numbers.to(device)
    on_cpu = torch.tensor(sigma)
    on_device = on_cpu.to(device)
    by_cpu_scalar = x / on_cpu
    by_device_scalar = x / on_device
    by_reciprocal = x * on_device.reciprocal()
    differ = (by_cpu_scalar != by_device_scalar).float().mean().item()
    from_reciprocal = (by_cpu_scalar != by_reciprocal).float().mean().item()
    print(
        f"{device}, sigma {sigma}: {differ:.1%} change with the scalar's place, "
        f"{from_reciprocal:.1%} differ from the reciprocal's product"
    )
    return differ, from_reciprocal


holds = True
for sigma in (14.6146, 3.7, 0.7071):
    cpu_differ, _ = differing_share("cpu", sigma)
    differ, from_reciprocal = differing_share("cuda", sigma)
    holds = holds and cpu_differ == 0 and differ > 0.05 and from_reciprocal == 0
sys.exit(0 if holds else "The behaviour has changed.")
PY
