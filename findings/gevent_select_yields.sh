#!/usr/bin/env bash
# gevent 26.9.0.
#
# Behaviour: the patched `select.select` with a timeout of 0 lets every other ready greenlet run
# to its next switch before it returns.
# One would guess: a timeout of 0 asks and returns at once, as the standard library's does.
# Why it matters: clients ask so whether a kept connection is alive, between taking the time and
# sending the request. A load generator then adds the work of its other users to the server's
# latency.
#
# Output seen:
#   standard library's select: 0 of 10 other greenlets ran, the call took 0.0 ms
#   gevent's select: 10 of 10 other greenlets ran, the call took 521.5 ms
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check gevent==26.9.0
venv/bin/python - <<'PY'
from gevent import monkey

monkey.patch_all()

import select
import socket
import sys
import time

import gevent

ours, _theirs = socket.socketpair()


def greenlets_that_ran(name, ask):
    ran = []

    def other_user():
        end_s = time.perf_counter() + 0.05
        while time.perf_counter() < end_s:
            pass
        ran.append(True)

    others = [gevent.spawn(other_user) for _ in range(10)]
    began_s = time.perf_counter()
    ask([ours], [], [], 0)
    took_ms = (time.perf_counter() - began_s) * 1e3
    print(f"{name}: {len(ran)} of 10 other greenlets ran, the call took {took_ms:.1f} ms")
    count = len(ran)
    gevent.joinall(others)
    return count


plain = greenlets_that_ran("standard library's select", monkey.get_original("select", "select"))
patched = greenlets_that_ran("gevent's select", select.select)
sys.exit(0 if (plain, patched) == (0, 10) else "The behaviour has changed.")
PY
