#!/usr/bin/env bash
# uvicorn 0.54.0, Linux or macOS.
#
# Behaviour: uvicorn stops in good order at SIGTERM and then raises the signal again. The
# process ends at once: no line after `uvicorn.run()` runs, not even a `finally`. After SIGINT,
# `uvicorn.run()` returns, but `Server.run()` raises KeyboardInterrupt.
# One would guess: after a stop in good order the call returns, whichever signal it was.
# Why it matters: many servers write telemetry or unload their model after `run()`. This works
# at Ctrl-C. It does not work if a scheduler, a container or a supervisor stops the server. Put
# such work into the lifespan.
#
# Output seen:
#   SIGINT, run: lifespan ended, returned, finally
#   SIGINT, server: lifespan ended, KeyboardInterrupt, finally
#   SIGTERM, run: lifespan ended
#   SIGTERM, server: lifespan ended
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check uvicorn==0.54.0
cat > server.py <<'PY'
import asyncio
import os
import signal
import sys

import uvicorn

number = signal.Signals[sys.argv[1]]


async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    asyncio.get_running_loop().call_later(1, os.kill, os.getpid(), number)
    await receive()
    print("lifespan ended", end=", ", flush=True)
    await send({"type": "lifespan.shutdown.complete"})


config = {"host": "127.0.0.1", "port": 0, "log_level": "error"}
try:
    if sys.argv[2] == "run":
        uvicorn.run(app, **config)
    else:
        uvicorn.Server(uvicorn.Config(app, **config)).run()
    print("returned", end=", ", flush=True)
except KeyboardInterrupt:
    print("KeyboardInterrupt", end=", ", flush=True)
finally:
    print("finally", end=", ", flush=True)
PY
holds=yes
expect() { # signal, way to start, expected words
  local seen
  seen=$(timeout 60 venv/bin/python server.py "$1" "$2" 2> log) || true
  echo "$1, $2: ${seen%, }"
  [ "${seen%, }" = "$3" ] || holds=no
}
expect SIGINT run "lifespan ended, returned, finally"
expect SIGINT server "lifespan ended, KeyboardInterrupt, finally"
expect SIGTERM run "lifespan ended"
expect SIGTERM server "lifespan ended"
[ "$holds" = yes ] || { echo "The behaviour has changed." >&2; exit 1; }
