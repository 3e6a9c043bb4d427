#!/usr/bin/env bash
# diffusers 0.42.1 with peft 0.21.2 and torch 2.13.0, on a CPU.
#
# Behaviour: a DoRA in kohya's format holds a magnitude for each layer, `dora_scale`. diffusers'
# loader for SDXL drops all of them, and loads the rest as a plain LoRA. Only a warning is logged.
# One would guess: a file that can't be read right is refused.
# Why it matters: the image is neither that of the base model nor that of the DoRA.
#
# Output seen:
#   the file has 4 tensors, one of them dora_scale; 2 are loaded, none of them a magnitude
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
from diffusers import StableDiffusionXLPipeline

name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
file = {
    f"{name}.lora_down.weight": torch.ones(4, 640),
    f"{name}.lora_up.weight": torch.ones(640, 4),
    f"{name}.alpha": torch.tensor(4.0),
    f"{name}.dora_scale": torch.ones(640, 1),
}
loaded, _ = StableDiffusionXLPipeline.lora_state_dict(dict(file))
magnitudes = [key for key in loaded if "dora" in key or "magnitude" in key]
print(
    f"the file has {len(file)} tensors, one of them dora_scale; {len(loaded)} are loaded, "
    f"{len(magnitudes) or 'none'} of them a magnitude"
)
sys.exit(0 if len(loaded) == 2 and not magnitudes else "The behaviour has changed.")
PY
