#!/usr/bin/env bash
# transformers 5.23.0 with torch 2.13.0, on a CPU.
#
# Behaviour: CLIP's text model pools at the end-of-text token of its config, by default 49407. A
# smaller vocabulary has no such token. Every prompt is then pooled at its first token, which is
# the same for all. Only a warning is logged. An `eos_token_id` of 2, as in SDXL's own files,
# does not mean token 2. It stands for "the highest id in the prompt", and pools rightly.
# One would guess: a token that is missing raises an error, and 2 is the wrong number.
# Why it matters: a small stand-in model for tests gives the same pooled embedding to every
# prompt. A server that mixes up the prompts of a batch would pass all tests of the pooled
# embedding.
#
# Output seen:
#   eos_token_id 49407: two prompts get the same pooled embeddings
#   eos_token_id 299: two prompts get different pooled embeddings
#   eos_token_id 2: two prompts get different pooled embeddings
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
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

SIZES = dict(vocab_size=300, hidden_size=32, intermediate_size=64, projection_dim=16)
LAYERS = dict(num_hidden_layers=2, num_attention_heads=2)
START, END = 298, 299


@torch.no_grad()
def pooled_alike(**end):
    torch.manual_seed(0)
    model = CLIPTextModelWithProjection(CLIPTextConfig(**SIZES, **LAYERS, **end)).eval()
    prompts = torch.tensor([[START, 5, 6, END], [START, 7, 8, END]])
    first, second = model(prompts).text_embeds
    alike = torch.equal(first, second)
    answer = "the same" if alike else "different"
    print(f"eos_token_id {model.config.eos_token_id}: two prompts get {answer} pooled embeddings")
    return alike


holds = pooled_alike() and not pooled_alike(eos_token_id=END) and not pooled_alike(eos_token_id=2)
sys.exit(0 if holds else "The behaviour has changed.")
PY
