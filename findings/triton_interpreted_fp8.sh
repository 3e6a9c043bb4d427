#!/usr/bin/env bash
# Triton 3.9.0 with torch 2.13.0, on a CPU, by its interpreter (TRITON_INTERPRET=1).
#
# Behaviour: a number that rounds up to the next power of two comes out at half its value, when a
# kernel turns float32 into float8e4nv. 7.99 becomes 4.0. The rounded fraction overflows, and the
# exponent does not take the carry.
# One would guess: the interpreter rounds as the GPU and torch do, since it is made to debug kernels.
# Why it matters: a test of a kernel that rounds to fp8 fails by a factor of two in one number of 80,
# though the kernel is right. So our test lets the kernel write float32, and torch rounds that.
#
# Output seen:
#   Triton's interpreter: [7.5, 4.0, 15.0, 16.0]
#   torch: [7.5, 8.0, 15.0, 32.0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check triton==3.9.0 torch==2.13.0 numpy==2.4.6
cat > round.py <<'PY'
import sys
import torch
import triton
import triton.language as tl


@triton.jit
def cast(source, answer, N: tl.constexpr):
    places = tl.arange(0, N)
    tl.store(answer + places, tl.load(source + places).to(tl.float8e4nv))


source = torch.tensor([7.3, 7.99, 15.0, 31.5])
answer = torch.empty(4, dtype=torch.float8_e4m3fn)
cast[(1,)](source, answer, N=4)
interpreted = answer.float().tolist()
rounded = source.to(torch.float8_e4m3fn).float().tolist()
print("Triton's interpreter:", interpreted)
print("torch:", rounded)
holds = interpreted == [7.5, 4.0, 15.0, 16.0] and rounded == [7.5, 8.0, 15.0, 32.0]
sys.exit(0 if holds else "The behaviour has changed.")
PY
TRITON_INTERPRET=1 venv/bin/python round.py 2> log || { cat log; exit 1; }
