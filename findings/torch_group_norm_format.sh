#!/usr/bin/env bash
# torch 2.11.0 with CUDA 13.0, on one H100 80 GB. (Needs a GPU.)
#
# Behaviour: on a GPU, group norm of a channels-last image returns a channels-first one, and
# takes twice the time that it takes for a channels-first image. On a CPU it keeps
# channels-last.
# One would guess: the format is kept as on a CPU, and channels-last is the fast one on a GPU.
# Why it matters: each residual block of SDXL begins with such a norm, so the format changes at
# every block. Channels-last alone made the decoder slower on the same card: 0.145 s, not 0.100
# s. A check of the format on a CPU shows no reason.
#
# Output seen:
#   cpu: channels-last comes out channels-last
#   cuda: channels-last comes out channels-first
#   128x1024x1024: channels-first 3.7 ms, channels-last 8.0 ms
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
import statistics
import sys

import torch

norm = torch.nn.GroupNorm(32, 128).bfloat16()


def keeps_format(device):
    x = torch.randn(1, 128, 64, 64, dtype=torch.bfloat16, device=device)
    output = norm.to(device)(x.to(memory_format=torch.channels_last))
    kept = output.is_contiguous(memory_format=torch.channels_last)
    print(f"{device}: channels-last comes out {'channels-last' if kept else 'channels-first'}")
    return kept


@torch.no_grad()
def median_ms(memory_format):
    x = torch.randn(1, 128, 1024, 1024, dtype=torch.bfloat16, device="cuda")
    x = x.to(memory_format=memory_format)
    times_ms = []
    for _ in range(25):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        norm(x)
        ended.record()
        ended.synchronize()
        times_ms.append(began.elapsed_time(ended))
    return statistics.median(times_ms[5:])


holds = keeps_format("cpu") and not keeps_format("cuda")
first_ms, last_ms = median_ms(torch.contiguous_format), median_ms(torch.channels_last)
print(f"128x1024x1024: channels-first {first_ms:.1f} ms, channels-last {last_ms:.1f} ms")
sys.exit(0 if holds and last_ms > 1.3 * first_ms else "The behaviour has changed.")
PY
