#!/usr/bin/env bash
# torch 2.11.0 with CUDA 13.0, on one H100 80 GB. (Needs a GPU of the Hopper generation.)
#
# Behaviour: `scaled_dot_product_attention` takes cuDNN's kernel by itself on this card, where
# flash attention could be used too.
# One would guess: flash attention is the default, and cuDNN has to be asked for by
# `sdpa_kernel(SDPBackend.CUDNN_ATTENTION)`.
# Why it matters: a benchmark of "attention by cuDNN" compares a thing with itself and finds no
# gain. The default depends on the card, and the last digits of an image depend on the default.
#
# Output seen:
#   default: ['cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_']
#   cuDNN: ['cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_']
#   flash: ['void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits']
#   the default's output is cuDNN's, to the bit: True
#   the default's output is flash attention's, to the bit: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.11.0 numpy==2.4.6
if ! venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "skipped: no CUDA GPU"
  exit 0
fi
venv/bin/python - <<'PY'
import contextlib
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

if torch.cuda.get_device_capability() != (9, 0):
    print("skipped: no Hopper GPU")
    sys.exit()
torch.manual_seed(0)
q, k, v = torch.randn(3, 2, 20, 1024, 64, device="cuda", dtype=torch.bfloat16)


def attend(name, within):
    with within, profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
        output = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        torch.cuda.synchronize()
    names = [event.key for event in seen.key_averages()]
    print(f"{name}: {[one[:60] for one in names if 'flash' in one]}")
    return output


default = attend("default", contextlib.nullcontext())
cudnn = attend("cuDNN", sdpa_kernel(SDPBackend.CUDNN_ATTENTION))
flash = attend("flash", sdpa_kernel(SDPBackend.FLASH_ATTENTION))
print(f"the default's output is cuDNN's, to the bit: {torch.equal(default, cudnn)}")
print(f"the default's output is flash attention's, to the bit: {torch.equal(default, flash)}")
holds = torch.equal(default, cudnn) and not torch.equal(default, flash)
sys.exit(0 if holds else "The behaviour has changed.")
PY
