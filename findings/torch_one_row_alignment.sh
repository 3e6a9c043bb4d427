#!/usr/bin/env bash
# torch 2.13.0 and safetensors 0.8.0, on x86 CPUs.
#
# Behaviour: a linear layer that is given one row sums in another order if its weight does not begin
# at a multiple of 16 bytes. Then the last bits of the answer differ. load_file() leaves weights
# mapped, where they lie in the file, and the format aligns tensors to 8 bytes at most. So equal
# weights give other answers, by the names and shapes of the tensors that lie before them. From two
# rows on, the address does not matter.
# One would guess: where a weight lies in memory may change the time of a product, not the product.
# Why it matters: a diffusion model's time embedding has one row. Images of the same weights differ in
# a few pixels by one level, if one pipeline copied the weights and the other has them mapped. A
# comparison "to the bit" has to copy them first.
#
# Output seen:
#   1 row: a weight at 8 bytes past 16 gives the same bits: False
#   1 row: a copy of that weight gives the same bits: True
#   2 rows: a weight at 8 bytes past 16 gives the same bits: True
set -euo pipefail
[ "$(uname -m)" = x86_64 ] || { echo "skipped: this is no x86 CPU"; exit 0; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'PY'
import sys

import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
torch.manual_seed(0)
weight = torch.randn(320, 96)
# A tensor of 2 numbers before it moves the weight by 8 bytes. Names are in the order of the file.
for name, before in (("even", 4), ("odd", 2)):
    save_file({"a": torch.zeros(before), "b": weight}, f"{name}.safetensors")
mapped = {name: load_file(f"{name}.safetensors")["b"] for name in ("even", "odd")}
by_place = {tensor.data_ptr() % 16: tensor for tensor in mapped.values()}
if set(by_place) != {0, 8}:
    sys.exit(f"The behaviour has changed: the weights lie at {sorted(by_place)} bytes past 16.")
assert torch.equal(by_place[0], by_place[8])

def agree(rows, one, other):
    x = torch.randn(rows, 96)
    linear = torch.nn.functional.linear
    return torch.equal(linear(x, one), linear(x, other))

seen = [agree(1, by_place[0], by_place[8])]
print("1 row: a weight at 8 bytes past 16 gives the same bits:", seen[-1])
seen.append(agree(1, by_place[0], by_place[8].clone()))
print("1 row: a copy of that weight gives the same bits:", seen[-1])
seen.append(agree(2, by_place[0], by_place[8]))
print("2 rows: a weight at 8 bytes past 16 gives the same bits:", seen[-1])
sys.exit(0 if seen == [False, True, True] else "The behaviour has changed.")
PY
