#!/usr/bin/env bash
# geventhttpclient 2.6.1 with gevent 26.9.0 (the client below Locust's FastHttpUser), Linux or
# macOS.
#
# Behaviour: before it uses a kept connection again, the client asks `select` whether it is
# alive. `select` takes no descriptor of 1024 or more. Such a connection counts as dead and is
# closed.
# One would guess: keep-alive works for every connection, or the client raises.
# Why it matters: a load generator with about a thousand connections connects anew for each
# request from there on. The server's accept queue is measured in place of the server, and
# nothing is logged.
#
# Output seen:
#   descriptors below 1024: 10 requests took 1 connections
#   descriptors above 1024: 10 requests took 10 connections
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check geventhttpclient==2.6.1 gevent==26.9.0
venv/bin/python - <<'PY'
from gevent import monkey

monkey.patch_all()

import os
import resource
import sys

import gevent
from gevent.server import StreamServer
from geventhttpclient import HTTPClient

connections = 0


def answer(socket, _address):
    global connections
    connections += 1
    while socket.recv(65536):
        socket.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def connections_for_ten_requests(name):
    before = connections
    client = HTTPClient("127.0.0.1", server.server_port, concurrency=1)
    for _ in range(10):
        client.get("/").read()
    client.close()
    gevent.sleep(0.2)  # the server closes its side
    print(f"{name}: 10 requests took {connections - before} connections")
    return connections - before


_soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
server = StreamServer(("127.0.0.1", 0), answer)
server.start()
low = connections_for_ten_requests("descriptors below 1024")
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1024)]
high = connections_for_ten_requests("descriptors above 1024")
sys.exit(0 if (low, high) == (1, 10) else "The behaviour has changed.")
PY
