#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2 and torch 2.13.0, on a CPU.
#
# Behaviour: an adapter has the scale 1. It is fused with lora_scale=0.5 and unfused again. From
# then on it works at the scale 0.5.
# One would guess: unfusing brings back what was before fusing.
# Why it matters: images after unfusing have half the adapter. No error and no warning is seen.
#
# Output seen (the greatest difference of an output of order 1):
#   unfused, against a fresh UNet with the adapter at 1.0: 0.07
#   unfused, against a fresh UNet with the adapter at 0.5: 6e-07
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  diffusers==0.42.1 peft==0.21.2 transformers==5.23.0 torch==2.13.0 numpy==2.4.6
venv/bin/python 2> log - <<'PY' || { cat log; exit 1; }
import sys

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig

torch.set_num_threads(1)
BLOCKS = dict(
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(32, 64),
    layers_per_block=1,
)


def make_unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, cross_attention_dim=32, attention_head_dim=8, norm_num_groups=8, **BLOCKS
    ).eval()


def add_adapter(unet):
    torch.manual_seed(1)
    targets = ["to_q", "to_k", "to_v"]
    config = LoraConfig(r=4, lora_alpha=4, target_modules=targets, init_lora_weights=False)
    unet.add_adapter(config, "style")


@torch.no_grad()
def output(unet, **options):
    numbers = torch.Generator().manual_seed(2)
    latents = torch.randn(1, 4, 8, 8, generator=numbers)
    text = torch.randn(1, 7, 32, generator=numbers)
    return unet(latents, torch.tensor(500), text, **options).sample


def of_scale(scale):
    unet = make_unet()
    add_adapter(unet)
    unet.set_adapters("style", scale)
    return output(unet)


def distance(one, other):
    return (one - other).abs().max().item()


unet = make_unet()
add_adapter(unet)
unet.set_adapters("style", 1.0)
unet.fuse_lora(lora_scale=0.5, adapter_names=["style"])
unet.unfuse_lora()
after = output(unet)
away = {}
for scale in (1.0, 0.5):
    away[scale] = distance(after, of_scale(scale))
    print(f"unfused, against a fresh UNet with the adapter at {scale}: {away[scale]:.1g}")
sys.exit(0 if away[1.0] > 0.01 and away[0.5] < 1e-4 else "The behaviour has changed.")
PY
