#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2 and torch 2.13.0, on a CPU.
#
# Behaviour: an adapter has the scale 0.5. One call with cross_attention_kwargs={"scale": 0.0}
# leaves it at the scale 1, for all later calls.
# One would guess: the argument of one call changes that call alone.
# Why it matters: a server that switches an adapter off by that argument gives later images twice
# the adapter. No error and no warning is seen.
#
# Output seen:
#   after a call with scale 0, the output is that of a fresh UNet with the adapter at 0.5: False
#   after a call with scale 0, the output is that of a fresh UNet with the adapter at 1.0: True
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
unet.set_adapters("style", 0.5)
output(unet, cross_attention_kwargs={"scale": 0.0})
after = output(unet)
alike = {}
for scale in (0.5, 1.0):
    alike[scale] = torch.equal(after, of_scale(scale))
    words = f"the output is that of a fresh UNet with the adapter at {scale}: {alike[scale]}"
    print(f"after a call with scale 0, {words}")
sys.exit(0 if alike == {0.5: False, 1.0: True} else "The behaviour has changed.")
PY
