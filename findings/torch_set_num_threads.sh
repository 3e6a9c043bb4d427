#!/usr/bin/env bash
# torch 2.13.0, on a CPU.
#
# Behaviour: `torch.set_num_threads` sets the number for the calling thread and for threads that
# have not computed yet. A thread that has computed keeps its old number.
# One would guess: the number holds for the whole process. The documentation asks to set it
# before anything is computed, and has no word of threads.
# Why it matters: a server computes on a thread of its own. A benchmark that sets 1, 2 and 4
# threads from the main thread measures the same number three times.
#
# Output seen:
#   before: the server's thread uses 1
#   after set_num_threads(3) in the main thread: the main thread says 3
#     the server's thread uses 1, a new thread 3
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'PY'
import sys
from concurrent.futures import ThreadPoolExecutor

import torch


def compute():
    torch.randn(256, 256) @ torch.randn(256, 256)
    return torch.get_num_threads()


torch.set_num_threads(1)
with ThreadPoolExecutor(1) as server, ThreadPoolExecutor(1) as newcomer:
    before = server.submit(compute).result()
    torch.set_num_threads(3)
    main = torch.get_num_threads()
    after = server.submit(compute).result()
    new = newcomer.submit(compute).result()
print(f"before: the server's thread uses {before}")
print(f"after set_num_threads(3) in the main thread: the main thread says {main}")
print(f"  the server's thread uses {after}, a new thread {new}")
holds = (before, main, after, new) == (1, 3, 1, 3)
sys.exit(0 if holds else "The behaviour has changed.")
PY
