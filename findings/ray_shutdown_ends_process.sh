#!/usr/bin/env bash
# Ray 2.60.0, Linux.
#
# Behaviour: `ray.shutdown()` while another thread calls an actor may end the whole process with status
# 1. Ray's library exits, so no `except` and no `finally` runs.
# One would guess: the other thread's calls raise an error, and the script goes on.
# Why it matters: a server in a notebook that calls its replicas from threads takes the notebook's
# kernel with it, and all that was measured, if a cell calls `ray.shutdown()`. End the threads first.
#
# Output seen:
#   try 1: status 0
#   try 2: ended by Ray, status 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check ray==2.60.0
cat > script.py <<'PY'
import sys
import threading
import time

import ray


@ray.remote
class Clock:
    def ask(self):
        return time.time()


ray.init(address="local", num_cpus=1, include_dashboard=False, _temp_dir=sys.argv[1])
clock = Clock.remote()
ray.get(clock.ask.remote())


def ask_for_ever():
    while True:
        try:
            clock.ask.remote().future().result(5)
        except Exception:
            time.sleep(0.1)


for _ in range(2):
    threading.Thread(target=ask_for_ever, daemon=True).start()
time.sleep(1)
ray.shutdown()
time.sleep(3)
print("the script goes on", flush=True)
PY
export RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 RAY_ENABLE_AUTO_CONNECT=0
for try in $(seq 12); do
    status=0
    timeout 60 venv/bin/python script.py "$folder" > log 2>&1 || status=$?
    if [ "$status" = 1 ] && grep -q "The process will exit" log && ! grep -q "goes on" log; then
        echo "try $try: ended by Ray, status 1"
        exit 0
    fi
    echo "try $try: status $status"
done
echo "The behaviour has changed."
exit 1
