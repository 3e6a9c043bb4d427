#!/usr/bin/env bash
# torch 2.13.0, on a CPU. (Needs a C++ compiler.)
#
# Behaviour: in a chain of residuals, inductor keeps no sum that four tensors or fewer make up. Each
# norm's kernel adds them again: it reads one tensor more than the norm before, up to five.
# One would guess: the kernel that adds a residual writes the sum, and the next one reads it.
# Why it matters: a transformer's norms are bound by memory. With `realize_reads_threshold=1` each
# reads two tensors, and writes the sum.
#
# Output seen:
#   inductor's own: the norms read 2, 3, 4, 5, 2, 3, 4, 5 tensors
#   threshold 1: the norms read 2, 2, 2, 2, 2, 2, 2, 2 tensors
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
venv/bin/python 2> log - <<'PY' || { cat log; exit 1; }
import re
import sys

import torch
from torch._inductor.utils import run_and_get_code

LAYERS, WIDTH = 8, 256


def chain(x, weights):
    for weight in weights:
        normed = torch.nn.functional.layer_norm(x, (WIDTH,))
        x = x + torch.nn.functional.linear(normed, weight, weight[0])
    return torch.nn.functional.layer_norm(x, (WIDTH,))


def tensors_read(options):
    torch.compiler.reset()
    compiled = torch.compile(chain, dynamic=False, options=options | {"fx_graph_cache": False})
    x = torch.randn(512, WIDTH).bfloat16()
    weights = [torch.randn(WIDTH, WIDTH).bfloat16() for _ in range(LAYERS)]
    with torch.no_grad():
        _, (code, *_) = run_and_get_code(compiled, x, weights)
    sources = dict(re.findall(r"(cpp_fused\w*) = async_compile\.cpp_pybinding\(\[(.*?)\],", code))
    calls = re.findall(r"^ +(cpp_fused\w*layer_norm\w*)\(", code, re.MULTILINE)
    # A sum that is written is one of the tensors that were read
    return [sources[name].count("BFloat16*") - 1 for name in calls][1:]


own, eager = tensors_read({}), tensors_read({"realize_reads_threshold": 1})
print("inductor's own: the norms read", ", ".join(map(str, own)), "tensors")
print("threshold 1: the norms read", ", ".join(map(str, eager)), "tensors")
sys.exit(0 if max(own) > max(eager) == min(eager) else "The behaviour has changed.")
PY
