#!/usr/bin/env bash
# diffusers 0.42.1 with torch 2.13.0, on a CPU. The network is laid out without memory.
#
# Behaviour: `unet.device` asks every module of the network for an offloading hook, each time it is
# read. SDXL's UNet has 1,930 modules, which takes milliseconds of Python.
# One would guess: a property named `device` reads one attribute, as a tensor's does.
# Why it matters: whoever writes `device=pipe.unet.device` in a request's path adds this to every
# image, while the GPU waits. The pipeline's own `device` is another property, and does not ask.
#
# Output seen:
#   modules of the UNet: 1930
#   unet.device: 4.0 ms; next(unet.parameters()).device: 0.004 ms
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check diffusers==0.42.1 transformers==5.23.0 torch==2.13.0 numpy==2.4.6
venv/bin/python 2> log - <<'PY' || { cat log; exit 1; }
import sys
import time
import torch
from diffusers import UNet2DConditionModel

with torch.device("meta"):
    unet = UNet2DConditionModel(
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        use_linear_projection=True,
        cross_attention_dim=2048,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def shortest_ms(read):
    times = []
    for _ in range(20):
        began = time.process_time()
        read()
        times.append(time.process_time() - began)
    return 1000 * min(times)


modules = sum(1 for _ in unet.modules())
walked = shortest_ms(lambda: unet.device)
read = shortest_ms(lambda: next(unet.parameters()).device)
print("modules of the UNet:", modules)
print(f"unet.device: {walked:.1f} ms; next(unet.parameters()).device: {read:.3f} ms")
holds = modules > 1500 and walked > 100 * read
sys.exit(0 if holds else "The behaviour has changed.")
PY
