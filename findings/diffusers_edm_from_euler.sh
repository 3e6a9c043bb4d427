#!/usr/bin/env bash
# diffusers 0.42.1, on a CPU.
#
# Behaviour: EDMEulerScheduler.from_config(...) raises TypeError for the configuration of an
# EulerDiscreteScheduler that was saved and loaded. The file says that sigma_min is null.
# One would guess: an option that is null counts as left out, as before the scheduler was saved.
# Why it matters: whether a user may choose this sampler depends on whether the model was saved by a
# newer diffusers. The published base model's file has no sigma_min.
#
# Output seen:
#   from the scheduler itself: EDMEulerScheduler
#   from its file: TypeError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  torch==2.13.0 diffusers==0.42.1 scipy==1.17.1 numpy==2.4.6
venv/bin/python -W ignore - <<'PY'
import sys

from diffusers import EDMEulerScheduler, EulerDiscreteScheduler
from diffusers.utils import logging

logging.set_verbosity_error()
own = EulerDiscreteScheduler()


def made_from(scheduler):
    try:
        return type(EDMEulerScheduler.from_config(scheduler.config)).__name__
    except TypeError as error:
        return type(error).__name__


own.save_pretrained("saved")
results = [made_from(own), made_from(EulerDiscreteScheduler.from_pretrained("saved"))]
print("from the scheduler itself:", results[0])
print("from its file:", results[1])
sys.exit(0 if results == ["EDMEulerScheduler", "TypeError"] else "The behaviour has changed.")
PY
