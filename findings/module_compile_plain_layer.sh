#!/usr/bin/env bash
# torch 2.13.0, on a CPU.
#
# Behaviour: `torch.nn.Conv2d(...).compile()` compiles nothing. The layer then computes as before,
# without a warning. A subclass whose `forward` is one's own is compiled.
# One would guess: `Module.compile` compiles any module.
# Why it matters: whoever compiles a network by parts believes that such a layer is done, and pays
# for its bias by a pass of its own. torch skips code of its own modules as the start of a graph.
#
# Output seen:
#   a plain convolution: 0 graphs
#   a subclass with a forward: 1 graphs
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
venv/bin/python 2> log - <<'PY' || { cat log; exit 1; }
import sys
import torch


class Convolution(torch.nn.Conv2d):
    def forward(self, image):
        return super().forward(image)


def graphs_of(kind):
    seen = []

    def note(graph, _):
        seen.append(graph)
        return graph.forward

    layer = kind(4, 8, 3)
    layer.compile(backend=note)
    with torch.inference_mode():
        layer(torch.randn(1, 4, 8, 8))
    return len(seen)


plain, own = graphs_of(torch.nn.Conv2d), graphs_of(Convolution)
print(f"a plain convolution: {plain} graphs")
print(f"a subclass with a forward: {own} graphs")
sys.exit(0 if (plain, own) == (0, 1) else "The behaviour has changed.")
PY
