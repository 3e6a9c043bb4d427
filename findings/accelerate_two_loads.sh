#!/usr/bin/env bash
# accelerate 1.15.0 with torch 2.13.0, on a CPU.
#
# Behaviour: `init_empty_weights` patches torch's modules for all threads. Where two threads are in it
# at once, the patch stays after both have left.
# One would guess: it concerns the thread that asks for it, and ends with its block.
# Why it matters: diffusers' loaders use it. After two loads at once, all new modules of the process
# have no memory, and all further loads fail. Nothing says why.
#
# Output seen:
#   beside the first thread's block, a layer of another thread is on: meta
#   after both blocks, a new layer is on: meta
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  accelerate==1.15.0 torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'PY'
import sys
import threading
import torch
from accelerate import init_empty_weights

first_is_in = threading.Event()
second_is_in = threading.Event()
first_is_out = threading.Event()


def first():
    with init_empty_weights():
        first_is_in.set()
        second_is_in.wait()
    first_is_out.set()


thread = threading.Thread(target=first)
thread.start()
first_is_in.wait()
beside = torch.nn.Linear(1, 1).weight.device
print(f"beside the first thread's block, a layer of another thread is on: {beside}")
with init_empty_weights():
    second_is_in.set()
    first_is_out.wait()
thread.join()
after = torch.nn.Linear(1, 1).weight.device
print(f"after both blocks, a new layer is on: {after}")
same = {beside.type, after.type} == {"meta"}
sys.exit(0 if same else "The behaviour has changed.")
PY
