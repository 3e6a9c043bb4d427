#!/usr/bin/env bash
# transformers 5.23.0 with torch 2.13.0, on a CPU.
#
# Behaviour: weights that a model's file lacks are drawn at random by `from_pretrained`. A report in
# the log says so, and nothing is raised. Two loads of one folder give two models.
# One would guess: a damaged file is refused.
# Why it matters: a text encoder that was cut by a merging tool, or saved by another version under
# other names, makes images. They are wrong, and they differ from start to start of a server.
#
# Output seen:
#   a layer is missing: two loads give different models, and no error
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  transformers==5.23.0 torch==2.13.0 numpy==2.4.6
venv/bin/python 2> log - <<'PY' || { cat log; exit 1; }
import sys
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

SIZES = dict(vocab_size=300, hidden_size=32, intermediate_size=64, projection_dim=16)
LAYERS = dict(num_hidden_layers=2, num_attention_heads=2)
CLIPTextModelWithProjection(CLIPTextConfig(**SIZES, **LAYERS)).save_pretrained("encoder")
file = "encoder/model.safetensors"
weights = {key: value for key, value in load_file(file).items() if "layers.1." not in key}
save_file(weights, file, metadata={"format": "pt"})


@torch.no_grad()
def load_and_encode():
    model = CLIPTextModelWithProjection.from_pretrained("encoder").eval()
    return model(torch.tensor([[298, 5, 6, 299]])).text_embeds


same = torch.equal(load_and_encode(), load_and_encode())
answer = "the same model" if same else "different models"
print(f"a layer is missing: two loads give {answer}, and no error")
sys.exit("The behaviour has changed." if same else 0)
PY
