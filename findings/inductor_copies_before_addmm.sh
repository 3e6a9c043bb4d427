#!/usr/bin/env bash
# torch 2.13.0, on a CPU.
#
# Behaviour: inductor compiles `x.addmm_(...)`, a product that is added in place, to a product with
# another tensor for its answer. torch's `addmm` then copies `x` into that tensor first. A custom
# operator that says that it changes `x` stays in place, also several times in a row.
# One would guess: torch's own operator is the one that inductor keeps in place.
# Why it matters: with a residual in place of `x`, the copy takes what adding in place would gain.
#
# Output seen:
#   x.addmm_: 3 products to 3 other tensors
#   a custom operator: 3 products to 0 other tensors
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
from torch import library
from torch._inductor.utils import run_and_get_code


@library.custom_op("finding::add_", mutates_args=("x",))
def add_(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> None:
    x.addmm_(y, weight)


@add_.register_fake
def _(x, y, weight):
    pass


def by_torch(x, y, weight):
    x.addmm_(y, weight)


def code_of(add):
    def three_products(y, weight):
        x = y @ weight
        for _ in range(3):
            add(x, torch.relu(x), weight)
        return x

    torch.compiler.reset()
    with torch.inference_mode():
        y, weight = torch.randn(2, 64, 64)
        _, (code,) = run_and_get_code(torch.compile(three_products), y, weight)
    return code.split("def call")[1]


by_addmm = re.findall(r"extern_kernels\.addmm\((\w+),.*out=(\w+)\)", code_of(by_torch))
others = sum(read != written for read, written in by_addmm)
print(f"x.addmm_: {len(by_addmm)} products to {others} other tensors")
own = re.findall(r"finding\.add_\.default\((\w+),", code_of(add_))
print(f"a custom operator: {len(own)} products to {len(set(own)) - 1} other tensors")
sys.exit((len(by_addmm), others, len(own), len(set(own))) != (3, 3, 3, 1))
PY
