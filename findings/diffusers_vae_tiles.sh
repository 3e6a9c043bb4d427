#!/usr/bin/env bash
# diffusers 0.42.1 with torch 2.13.0, on a CPU.
#
# Behaviour: the VAE's tiles are as large as the side that its config names. `enable_tiling()`
# on SDXL's VAE (`sample_size` 1024) decodes an image of 1024x1024 in one piece, as before.
# One would guess: tiling cuts the peak of memory at the model's usual size.
# Why it matters: a benchmark of "with tiling" reports the same time and memory as without, and
# one concludes that tiling does not help. One pixel row of latents more, and four tiles are
# decoded.
#
# Output seen:
#   without tiling
#   1024x1024 is decoded in 1 pieces: 1024x1024
#   with tiling
#   1024x1024 is decoded in 1 pieces: 1024x1024
#   1032x1024 is decoded in 4 pieces: 1024x1024, 1024x256, 264x1024, 264x256
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0 numpy==2.4.6
venv/bin/python 2> log - <<'PY' || { cat log; exit 1; }
import sys
import torch
from diffusers import AutoencoderKL

down, up = "DownEncoderBlock2D", "UpDecoderBlock2D"
vae = AutoencoderKL(
    sample_size=1024,
    block_out_channels=(8, 8, 8, 8),
    norm_num_groups=4,
    layers_per_block=1,
    down_block_types=(down,) * 4,
    up_block_types=(up,) * 4,
).eval()
decoded = []
vae.decoder.register_forward_hook(lambda _module, _inputs, image: decoded.append(image.shape[2:]))


@torch.no_grad()
def pieces(height, width):
    decoded.clear()
    vae.decode(torch.zeros(1, 4, height // 8, width // 8))
    shown = ", ".join(f"{rows}x{columns}" for rows, columns in decoded)
    print(f"{height}x{width} is decoded in {len(decoded)} pieces: {shown}")
    return len(decoded)


print("without tiling"), pieces(1024, 1024)
vae.enable_tiling()
print("with tiling")
holds = pieces(1024, 1024) == 1 and pieces(1032, 1024) == 4
sys.exit(0 if holds else "The behaviour has changed.")
PY
