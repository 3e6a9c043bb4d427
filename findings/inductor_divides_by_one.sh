#!/usr/bin/env bash
# torch 2.13.0, on a CPU.
#
# Behaviour: between two products inductor leaves out a division by a tensor of ones, but keeps one by
# the number 1. It reads and writes the whole tensor by a kernel of its own, to change nothing. The
# same holds for a product with 1, and for adding 0.
# One would guess: the plain number is the easier case, and costs nothing.
# Why it matters: diffusers divides the answer of each attention by `rescale_output_factor`, which is
# 1.0 in SDXL. Before a kernel of one's own, or a product, that is a pass over the whole image.
#
# Output seen:
#   nothing between two products: 0 kernels
#   divided by 1.0: 1 kernels
#   times 1: 1 kernels
#   plus 0.0: 1 kernels
#   divided by a tensor of ones: 0 kernels
#   times a tensor of ones: 0 kernels
#   plus a tensor of zeros: 0 kernels
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 setuptools==80.9.0
venv/bin/python 2> log - <<'PY' || { cat log; exit 1; }
import re
import sys

import torch
from torch._inductor.utils import run_and_get_code

CASES = {
    "nothing between two products": (lambda x: x, 0),
    "divided by 1.0": (lambda x: x / 1.0, 1),
    "times 1": (lambda x: x * 1, 1),
    "plus 0.0": (lambda x: x + 0.0, 1),
    "divided by a tensor of ones": (lambda x: x / torch.ones(64, 64), 0),
    "times a tensor of ones": (lambda x: x * torch.ones(64, 64), 0),
    "plus a tensor of zeros": (lambda x: x + torch.zeros(64, 64), 0),
}


def kernels_between(change):
    def two_products(x, y):
        return change(x @ y) @ y

    torch.compiler.reset()
    x, y = torch.randn(2, 64, 64)
    _, (code,) = run_and_get_code(torch.compile(two_products), x, y)
    called = code.split("def call")[1]
    return len(re.findall(r"cpp_fused\w*\(", called))


changed = False
for name, (change, expected) in CASES.items():
    found = kernels_between(change)
    print(f"{name}: {found} kernels")
    changed |= found != expected
sys.exit(changed)
PY
