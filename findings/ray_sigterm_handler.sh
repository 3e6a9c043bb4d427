#!/usr/bin/env bash
# Ray 2.60.0, Linux.
#
# Behaviour: `ray.init()` takes SIGTERM from the script. A handler that was set before is never
# called, and a trace of C++ is printed. The process ends by `sys.exit(15)`, or by an abort with the
# status 134: which one varies from try to try. Without Ray, the script's own handler is called.
# One would guess: a library that connects to a cluster leaves the script's signal handlers alone.
# Why it matters: a server or a measurement saves its work in its own handler, when a scheduler or a
# container ends it. With Ray, the work is lost. Set your handler after `ray.init()`: Ray takes
# SIGTERM each time that it starts.
#
# Output seen:
#   without ray.init(): the handler is called, status 3, no trace
#   handler before ray.init(): the handler is not called, status 15 or 134, a trace
#   handler after ray.init(): the handler is called, status 3, no trace
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check ray==2.60.0
cat > script.py <<'PY'
import os
import signal
import sys
import time

import ray


def save(*_):
    print("saved", flush=True)
    sys.exit(3)


def begin_ray():
    ray.init(
        address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[2]
    )


signal.signal(signal.SIGTERM, save)
if sys.argv[1] != "without":
    begin_ray()
if sys.argv[1] == "after":
    signal.signal(signal.SIGTERM, save)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(30)
PY
holds=yes
expect() { # case, words of the case, expected words
  local status=0 called="not called" trace="no trace"
  RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 timeout 120 venv/bin/python script.py "$1" "$folder" > out 2> log ||
    status=$?
  ! grep -q saved out || called=called
  ! grep -q 'SIGTERM received' log || trace="a trace"
  echo "$2: the handler is $called, status $status, $trace"
  [ "$called, $trace" = "$3" ] || holds=no
}
expect without "without ray.init()" "called, no trace"
expect before "handler before ray.init()" "not called, a trace"
expect after "handler after ray.init()" "called, no trace"
[ "$holds" = yes ] || { echo "The behaviour has changed." >&2; exit 1; }
