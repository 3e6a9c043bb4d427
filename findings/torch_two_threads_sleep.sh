#!/usr/bin/env bash
# torch 2.13.0, on a CPU with 2 cores or more, Linux (libgomp).
#
# Behaviour: each Python thread that computes keeps a pool of OpenMP threads. While one thread
# alone has computed, its pool spins between parallel operations and hardly ever sleeps. Once a
# second thread has computed, even if they take turns, the pools sleep and wake at every
# operation.
# One would guess: threads that take turns cost nothing, as only one of them computes at a time.
# Why it matters: small models run slower from then on, a tiny SDXL three times. A notebook that
# tries a model by hand and then serves it from another thread measures a server that is too
# slow. On a busy machine it is the other way round: a pool that spins waits longest. So the
# script counts sleeps ("voluntary context switches"). Times depend on other work.
#
# Output seen (2 cores):
#   warm-up: 0.3 sleeps a call, fastest call 1.9 ms
#   one thread: 0.0 sleeps a call, fastest call 1.9 ms
#   second thread: 80.0 sleeps a call, fastest call 2.5 ms
#   first thread again: 79.9 sleeps a call, fastest call 2.5 ms
#   second thread ended: 0.5 sleeps a call, fastest call 1.8 ms
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
venv/bin/python - <<'PY'
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import torch

if torch.get_num_threads() < 2:
    sys.exit("This needs 2 cores or more.")
layers = [torch.nn.Conv2d(32, 32, 3, padding=1) for _ in range(20)]
model = torch.nn.Sequential(*layers)
x = torch.randn(1, 32, 16, 16)
CALLS = 100


@torch.no_grad()
def sleeps_per_call(name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    times_s = []
    for _ in range(CALLS):
        began_s = time.perf_counter()
        model(x)
        times_s.append(time.perf_counter() - began_s)
    sleeps = (resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before) / CALLS
    print(f"{name}: {sleeps:.1f} sleeps a call, fastest call {min(times_s) * 1e3:.1f} ms")
    return sleeps


sleeps_per_call("warm-up")
alone = sleeps_per_call("one thread")
with ThreadPoolExecutor(1) as second:
    second.submit(sleeps_per_call, "second thread").result()
    both = sleeps_per_call("first thread again")
again = sleeps_per_call("second thread ended")
holds = both > 20 and alone < both / 4 and again < both / 4
sys.exit(0 if holds else "The behaviour has changed.")
PY
