#!/usr/bin/env bash
# diffusers 0.42.1 with safetensors 0.8.0 and torch 2.13.0, on a CPU.
#
# Behaviour: a network that is loaded in its file's own dtype on a CPU computes with the file
# itself, which is mapped into memory. If the file is overwritten in place, the loaded network
# changes. In another dtype the weights are copied, and nothing happens.
# One would guess: a loaded model has its weights in memory of its own.
# Why it matters: a server goes on after a model's folder was updated with `cp` or `rsync
# --inplace`, and then answers with the images of another model, or of half of one. No error is
# raised.
#
# Output seen:
#   torch.float32: the answer after the file was overwritten differs from before
#   torch.bfloat16: the answer after the file was overwritten is the same as before
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  diffusers==0.42.1 safetensors==0.8.0 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0 numpy==2.4.6
venv/bin/python 2> log - <<'PY' || { cat log; exit 1; }
import sys
from pathlib import Path
import torch
from diffusers import AutoencoderKL

torch.manual_seed(0)
sizes = dict(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)
AutoencoderKL(**sizes).save_pretrained("vae")
file = Path("vae/diffusion_pytorch_model.safetensors")
original = file.read_bytes()


@torch.no_grad()
def changes(dtype):
    vae = AutoencoderKL.from_pretrained("vae", torch_dtype=dtype)
    latents = torch.ones(1, 4, 8, 8, dtype=dtype)
    before = vae.decode(latents).sample
    with file.open("r+b") as opened:  # the same file, other bytes in its second half
        opened.seek(len(original) // 2)
        opened.write(bytes(len(original) - len(original) // 2))
    changed = not torch.equal(before, vae.decode(latents).sample)
    file.write_bytes(original)
    answer = "differs from" if changed else "is the same as"
    print(f"{dtype}: the answer after the file was overwritten {answer} before")
    return changed


holds = changes(torch.float32) and not changes(torch.bfloat16)
sys.exit(0 if holds else "The behaviour has changed.")
PY
