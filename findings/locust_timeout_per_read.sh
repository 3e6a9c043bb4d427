#!/usr/bin/env bash
# Locust 2.47.0, both its users: FastHttpUser (geventhttpclient 2.6.1) and HttpUser (requests
# 2.34.2).
#
# Behaviour: a timeout bounds each read from the socket, not the request. A server that sends
# one byte in time, again and again, is never timed out.
# One would guess: with a timeout of 2 s no request takes longer than 2 s.
# Why it matters: a server that streams, or a proxy that keeps a connection alive with blanks,
# holds a user for ever. The run does not end, or its slowest requests are cut off and counted
# nowhere.
#
# Output seen:
#   FastHttpUser: timeout 2 s, took 5.0 s, 0 failures
#   HttpUser: timeout 2 s, took 5.0 s, 0 failures
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  locust==2.47.0 geventhttpclient==2.6.1 requests==2.34.2
venv/bin/python - <<'PY'
from gevent import monkey

monkey.patch_all()

import sys
import time

import gevent
from gevent.server import StreamServer
from locust import FastHttpUser, HttpUser, task
from locust.env import Environment

TIMEOUT_S = 2


def drip(socket, _address):
    socket.recv(65536)
    socket.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
    for _ in range(10):
        gevent.sleep(0.5)
        socket.sendall(b"x")


server = StreamServer(("127.0.0.1", 0), drip)
server.start()
HOST = f"http://127.0.0.1:{server.server_port}"


class Fast(FastHttpUser):
    host = HOST
    network_timeout = connection_timeout = TIMEOUT_S
    get_image = task(lambda self: self.client.get("/"))


class Plain(HttpUser):
    host = HOST
    get_image = task(lambda self: self.client.get("/", timeout=TIMEOUT_S))


def answered_late(user_class):
    user = user_class(environment)
    began_s = time.monotonic()
    user.get_image()
    took_s = time.monotonic() - began_s
    failures = environment.stats.total.num_failures
    name = user_class.__bases__[0].__name__
    print(f"{name}: timeout {TIMEOUT_S} s, took {took_s:.1f} s, {failures} failures")
    return took_s > 2 * TIMEOUT_S and failures == 0


environment = Environment(user_classes=[Fast, Plain])
environment.create_local_runner()
holds = answered_late(Fast) and answered_late(Plain)
sys.exit(0 if holds else "The behaviour has changed.")
PY
