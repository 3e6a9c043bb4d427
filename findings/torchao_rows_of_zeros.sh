#!/usr/bin/env bash
# torchao 0.18.0 with torch 2.13.0, on a CPU.
#
# Behaviour: a row of zeros, quantised to float8 by rows, comes back as NaN. Its scale is 0, and
# 0/0 is NaN. A lower bound for the scale exists (`hp_value_lb`, `activation_value_lb`). It is
# off by default.
# One would guess: zeros are the easiest values to quantise.
# Why it matters: SDXL replaces an empty negative prompt by rows of zeros. Without the bound,
# every guided image of an fp8 server is NaN. No error is raised, and the times look right.
#
# Output seen:
#   lower bound None: scales [0.007598876953125, 0.0, 0.004364013671875]
#     NaN in each row of 64: [0, 64, 0]
#   lower bound 1e-12: scales [0.007598876953125, 2.2343238370581275e-15, 0.004364013671875]
#     NaN in each row of 64: [0, 0, 0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torchao==0.18.0 torch==2.13.0 numpy==2.4.6
venv/bin/python 2> log - <<'PY' || { cat log; exit 1; }
import sys
import torch
from torchao.quantization import Float8Tensor, PerRow

rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
rows[1] = 0
found = {}
for bound in (None, 1e-12):
    packed = Float8Tensor.from_hp(rows, torch.float8_e4m3fn, PerRow(), hp_value_lb=bound)
    found[bound] = packed.dequantize().isnan().sum(dim=1).tolist()
    print(f"lower bound {bound}: scales {packed.scale.flatten().tolist()}")
    print(f"  NaN in each row of 64: {found[bound]}")
holds = found[None] == [0, 64, 0] and found[1e-12] == [0, 0, 0]
sys.exit(0 if holds else "The behaviour has changed.")
PY
