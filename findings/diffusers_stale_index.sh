#!/usr/bin/env bash
# diffusers 0.42.1 with torch 2.13.0, on a CPU.
#
# Behaviour: `save_pretrained` removes the shards of an earlier save from the folder, but not their
# index. `from_pretrained` takes the index before the whole file, so what diffusers has just saved
# is a folder that diffusers can't load.
# One would guess: saving anew replaces what was there.
# Why it matters: a job that saves its model into the same folder each night fails on the day that
# the model fits into one file.
#
# Output seen:
#   in shards: loads
#   then whole, into the same folder: FileNotFoundError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 torch==2.13.0 numpy==2.4.6
venv/bin/python 2> log - <<'PY' || { cat log; exit 1; }
import sys
from diffusers import AutoencoderKL

vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)


def outcome():
    try:
        AutoencoderKL.from_pretrained("vae")
    except FileNotFoundError:
        return "FileNotFoundError"
    return "loads"


vae.save_pretrained("vae", max_shard_size="5KB")
in_shards = outcome()
vae.save_pretrained("vae")
whole = outcome()
print(f"in shards: {in_shards}")
print(f"then whole, into the same folder: {whole}")
holds = (in_shards, whole) == ("loads", "FileNotFoundError")
sys.exit(0 if holds else "The behaviour has changed.")
PY
