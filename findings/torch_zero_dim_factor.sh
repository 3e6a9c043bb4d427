#!/usr/bin/env bash
# torch 2.13.0, on a CPU.
#
# Behaviour: a float32 tensor without dimensions is rounded to 16 bits if it is the left factor
# of a 16-bit product. As the right factor it is not. So `a * x` and `x * a` differ.
# One would guess: multiplication commutes, and such a tensor counts as a Python number.
# Why it matters: an image server that computes steps for many requests at once has to give the
# image of one request alone, bit by bit. The order of two factors decides that.
#
# Output seen:
#   torch.float16: a * x and x * a differ in 206 of 1000 values
#     x * a keeps a in float32: True
#     a * x rounds a to 16 bits: True
#   torch.bfloat16: a * x and x * a differ in 79 of 1000 values
#     x * a keeps a in float32: True
#     a * x rounds a to 16 bits: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'PY'
import sys
import torch

a = torch.tensor(0.1234567)
holds = True
for dtype in (torch.float16, torch.bfloat16):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = (x.float() * a).to(dtype)
    coarse = (x.float() * a.to(dtype).float()).to(dtype)
    left, right = a * x, x * a
    print(f"{dtype}: a * x and x * a differ in {int((left != right).sum())} of 1000 values")
    print(f"  x * a keeps a in float32: {torch.equal(right, exact)}")
    print(f"  a * x rounds a to 16 bits: {torch.equal(left, coarse)}")
    holds = holds and torch.equal(right, exact) and torch.equal(left, coarse)
    holds = holds and not torch.equal(left, right)
sys.exit(0 if holds else "The behaviour has changed.")
PY
