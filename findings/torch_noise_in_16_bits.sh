#!/usr/bin/env bash
# torch 2.11.0 and torch 2.13.0, on a CPU.
#
# Behaviour: torch 2.11 draws 16-bit `randn` in another way than 32-bit `randn`. One seed gives
# two unrelated series. torch 2.13 draws in 32 bits and rounds.
# One would guess: the dtype changes the last digits of the noise, in every release.
# Why it matters: a seed is then another image in each dtype and in each release. An image
# server that moves from float32 to bfloat16 looks broken in a comparison of images, and is not.
#
# Output seen:
#   torch 2.11.0+cu130 torch.float16: other numbers, correlation 0.03
#   torch 2.11.0+cu130 torch.bfloat16: other numbers, correlation -0.00
#   torch 2.13.0+cpu torch.float16: the same numbers, rounded, correlation 1.00
#   torch 2.13.0+cpu torch.bfloat16: the same numbers, rounded, correlation 1.00
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.11.0 numpy==2.4.6
cat > draw.py <<'PY'
import sys
import torch

expected = sys.argv[1]


def draw(dtype):
    return torch.randn(4096, dtype=dtype, generator=torch.Generator().manual_seed(1))


single = draw(torch.float32)
holds = True
for dtype in (torch.float16, torch.bfloat16):
    half = draw(dtype)
    correlation = torch.corrcoef(torch.stack([single, half.float()]))[0, 1].item()
    found = "the same numbers, rounded" if torch.equal(single.to(dtype), half) else "other numbers"
    print(f"torch {torch.__version__} {dtype}: {found}, correlation {correlation:.2f}")
    holds = holds and found == expected
sys.exit(0 if holds else "The behaviour has changed.")
PY
venv/bin/python draw.py "other numbers"
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
venv/bin/python draw.py "the same numbers, rounded"
