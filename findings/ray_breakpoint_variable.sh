#!/usr/bin/env bash
# Ray 2.60.0, Linux.
#
# Behaviour: `ray.init()` sets PYTHONBREAKPOINT in the environment of the script, and
# `ray.shutdown()` leaves it there. Every Python that the script starts later inherits it. Where that
# Python has no Ray, `breakpoint()` opens no debugger, but prints "Ignoring unimportable".
# One would guess: after `ray.shutdown()` the environment is as it was before `ray.init()`.
# Why it matters: a benchmark that starts servers in other environments can't debug them, and a test
# that compares the environment before and after fails. Put the variable back yourself.
#
# Output seen:
#   before ray.init(): None
#   after ray.init(): ray.util.rpdb._driver_set_trace
#   after ray.shutdown(): ray.util.rpdb._driver_set_trace
#   a Python without Ray: Ignoring unimportable $PYTHONBREAKPOINT
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check ray==2.60.0
python3 -m venv without
RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 timeout 120 venv/bin/python - "$folder" 2> log <<'PY' || { cat log; exit 1; }
import os
import subprocess
import sys

import ray

folder = sys.argv[1]
seen = []


def see(moment):
    seen.append(os.environ.get("PYTHONBREAKPOINT"))
    print(f"{moment}: {seen[-1]}")


os.environ.pop("PYTHONBREAKPOINT", None)
see("before ray.init()")
ray.init(address="local", num_cpus=1, include_dashboard=False, _temp_dir=folder)
see("after ray.init()")
ray.shutdown()
see("after ray.shutdown()")
command = [f"{folder}/without/bin/python", "-c", "breakpoint()"]
said = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL).stderr
is_ignored = "Ignoring unimportable $PYTHONBREAKPOINT" in said
print("a Python without Ray:", "Ignoring unimportable $PYTHONBREAKPOINT" if is_ignored else said)
before, during, after = seen
holds = before is None and during == after == "ray.util.rpdb._driver_set_trace" and is_ignored
sys.exit(0 if holds else "The behaviour has changed.")
PY
