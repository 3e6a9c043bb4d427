#!/usr/bin/env bash
# torch 2.13.0, on a CPU.
#
# Behaviour: `uniform_` in bfloat16 draws what it draws in float32, rounded, with one exception.
# A number that rounds up to the upper end becomes the lower end.
# One would guess: each bfloat16 number is the float32 number of that seed, rounded.
# Why it matters: random weights for a benchmark then differ between dtypes in a few thousandths
# of the values, each by the whole range. Images of the two dtypes cannot be compared.
#
# Output seen:
#   from 0.0 to 1.0: 197 of 100000 numbers are not the rounded ones
#     rounded they would be [1.0]
#     drawn they are [0.0]
#   from -1.0 to 1.0: 93 of 100000 numbers are not the rounded ones
#     rounded they would be [1.0]
#     drawn they are [-1.0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'PY'
import sys
import torch

COUNT = 100_000


def draw(dtype, low, high):
    generator = torch.Generator().manual_seed(1)
    return torch.empty(COUNT, dtype=dtype).uniform_(low, high, generator=generator).float()


holds = True
for low, high in ((0.0, 1.0), (-1.0, 1.0)):
    single = draw(torch.float32, low, high)
    half = draw(torch.bfloat16, low, high)
    rounded = single.bfloat16().float()
    differs = half != rounded
    print(f"from {low} to {high}: {int(differs.sum())} of {COUNT} numbers are not the rounded ones")
    print(f"  rounded they would be {rounded[differs].unique().tolist()}")
    print(f"  drawn they are {half[differs].unique().tolist()}")
    holds = holds and differs.any()
    holds = holds and (rounded[differs] == high).all() and (half[differs] == low).all()
sys.exit(0 if holds else "The behaviour has changed.")
PY
