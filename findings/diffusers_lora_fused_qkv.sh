#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2 and torch 2.13.0, on a CPU.
#
# Behaviour: after `fuse_qkv_projections`, an adapter of Q, K and V has no effect in
# self-attention, and none on K and V in cross-attention. It makes no difference whether the
# adapter is loaded before or after. Nothing is said.
# One would guess: an adapter that can't have an effect raises an error.
# Why it matters: a server that fuses projections to be faster makes images nearly without the
# LoRA that the user asked for.
#
# Output seen (the greatest difference of an output of order 1):
#   self-attention: with the adapter, loaded after fusing, against without: 0
#   self-attention: with the adapter, loaded before fusing, against without: 0
#   self-attention: with the adapter, never fused, against without: 0.1
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
    # In self-attention only
    targets = r".*attn1\.to_(q|k|v)"
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


plain = output(make_unet())
after = make_unet()
after.fuse_qkv_projections()
add_adapter(after)
before = make_unet()
add_adapter(before)
before.fuse_qkv_projections()
usual = make_unet()
add_adapter(usual)
away = {}
for unet, words in ((after, "loaded after fusing"), (before, "loaded before fusing"), (usual, "never fused")):
    away[words] = distance(output(unet), plain)
    print(f"self-attention: with the adapter, {words}, against without: {away[words]:.1g}")
*ignored, seen = away.values()
sys.exit(0 if max(ignored) < 1e-5 and seen > 0.01 else "The behaviour has changed.")
PY
