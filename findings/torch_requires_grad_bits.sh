#!/usr/bin/env bash
# torch 2.13.0, on a CPU.
#
# Behaviour: a linear layer without bias gets an input that is not contiguous. Its answer has other
# last bits if the weight requires a gradient, although no gradient is computed (`no_grad`).
# One would guess: under `no_grad` it makes no difference whether a weight requires a gradient.
# Why it matters: loading a LoRA switches `requires_grad` off in the base weights, and on in its
# own. A server that sets it otherwise makes images that differ from the stock pipeline's. With
# larger layers (640 features, 4096 tokens) we saw no difference.
#
# Output seen:
#   64 features, 16 tokens: 0.8 of the numbers differ, by 4e-07 at most
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  torch==2.13.0 numpy==2.4.6
venv/bin/python 2> log - <<'PY' || { cat log; exit 1; }
import sys

import torch

torch.manual_seed(0)
torch.set_num_threads(1)
layer = torch.nn.Linear(64, 8, bias=False)
tokens = torch.randn(2, 64, 16).transpose(1, 2)
with torch.no_grad():
    with_gradient = layer(tokens)
    layer.requires_grad_(False)
    without = layer(tokens)
differ = (with_gradient != without).float().mean().item()
most = (with_gradient - without).abs().max().item()
print(f"64 features, 16 tokens: {differ:.1g} of the numbers differ, by {most:.1g} at most")
sys.exit(0 if 0 < most < 1e-5 else "The behaviour has changed.")
PY
