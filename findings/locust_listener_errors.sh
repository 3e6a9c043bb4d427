#!/usr/bin/env bash
# Locust 2.47.0.
#
# Behaviour: an exception in a listener of the `request` event is logged and passed over. The
# run goes on, the request counts as a success. Only the exit status (2) tells at the end.
# One would guess: a listener that fails stops the run, or its requests count as failed.
# Why it matters: listeners are the way to keep each request's raw times. If the disk is full
# after an hour, the rest of the night is measured and not kept, and Locust's own table looks
# right.
#
# Output seen:
#   Locust counts 37 requests, 0 failures
#   The listener failed 37 times. Locust ended with status 2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check locust==2.47.0
cat > locustfile.py <<'PY'
from gevent.server import StreamServer
from locust import FastHttpUser, constant, events, task


def answer(socket, _address):
    while socket.recv(65536):
        socket.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


server = StreamServer(("127.0.0.1", 0), answer)
server.start()


class Visitor(FastHttpUser):
    host = f"http://127.0.0.1:{server.server_port}"
    wait_time = constant(0.05)

    @task
    def visit(self):
        self.client.get("/")


@events.request.add_listener
def keep(**_request):
    raise OSError("no space left")
PY
status=0
venv/bin/locust --headless --users 1 --run-time 3s --json > totals.json 2> log || status=$?
errors=$(grep -c '^OSError: no space left' log || true)
venv/bin/python - "$errors" "$status" <<'PY'
import json
import sys

errors, status = map(int, sys.argv[1:])
with open("totals.json") as file:
    rows = json.load(file)
requests = sum(row["num_requests"] for row in rows)
failures = sum(row["num_failures"] for row in rows)
print(f"Locust counts {requests} requests, {failures} failures")
print(f"The listener failed {errors} times. Locust ended with status {status}.")
holds = requests > 5 and failures == 0 and errors > 5 and status == 2
sys.exit(0 if holds else "The behaviour has changed.")
PY
