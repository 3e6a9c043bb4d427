#!/usr/bin/env bash
# diffusers 0.42.1 with torch 2.13.0, on a CPU. (The memory format is the same on a GPU.)
#
# Behaviour: a transformer block as SDXL has it (`use_linear_projection=True`) takes an image in
# channels-last and returns it channels-first. The older form (a convolution) keeps
# channels-last.
# One would guess: a UNet moved `.to(memory_format=torch.channels_last)` stays in that format.
# Why it matters: the next convolution converts the format back. SDXL's UNet does so at each of
# its transformers, at every step. Part of the format's gain is lost, and no profile names the
# cause.
#
# Output seen:
#   residual block: strides (2048, 1, 256, 32) become (2048, 1, 256, 32)
#   transformer, use_linear_projection=False: strides (2048, 1, 256, 32) become (2048, 1, 256, 32)
#   transformer, use_linear_projection=True: strides (2048, 1, 256, 32) become (2048, 64, 8, 1)
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
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel

image = torch.randn(2, 32, 8, 8).to(memory_format=torch.channels_last)


def keeps_format(name, output):
    kept = output.is_contiguous(memory_format=torch.channels_last)
    print(f"{name}: strides {image.stride()} become {output.stride()}")
    return kept


@torch.no_grad()
def transformer_keeps_format(linear):
    block = Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=32,
        norm_num_groups=8,
        cross_attention_dim=24,
        use_linear_projection=linear,
    ).to(memory_format=torch.channels_last)
    output = block(image, encoder_hidden_states=torch.randn(2, 5, 24)).sample
    return keeps_format(f"transformer, use_linear_projection={linear}", output)


resnet = ResnetBlock2D(in_channels=32, temb_channels=16, groups=8)
resnet.to(memory_format=torch.channels_last)
with torch.no_grad():
    resnet_keeps = keeps_format("residual block", resnet(image, torch.randn(2, 16)))
holds = resnet_keeps and transformer_keeps_format(False) and not transformer_keeps_format(True)
sys.exit(0 if holds else "The behaviour has changed.")
PY
