#!/usr/bin/env bash
# uvicorn 0.54.0 with httptools 0.9.0 or h11 0.16.0, and FastAPI 0.165.0.
#
# Behaviour: a client may offer to go on in HTTP/2 ("Upgrade: h2c"). With httptools, which uvicorn
# takes if it is installed, uvicorn does not accept the offer, and does not deliver the body to the
# application. With h11 it delivers it.
# One would guess: an offer that a server does not take changes nothing, whichever parser reads it.
# Why it matters: `curl --http2` makes this offer over plain HTTP. FastAPI then answers 422 to a good
# request for an image. The log says "Unsupported upgrade request", and nothing of the body.
#
# Output seen:
#   httptools, plain: 200 {"steps":4}
#   httptools, offers h2c: 422 {"detail":[{"type":"missing","loc":["body"],"msg":"Field r
#   h11, plain: 200 {"steps":4}
#   h11, offers h2c: 200 {"steps":4}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  uvicorn==0.54.0 httptools==0.9.0 h11==0.16.0 fastapi==0.165.0 starlette==1.10.0
cat > server.py <<'PY'
import http.client
import socket
import sys
import threading
import time

import uvicorn
from fastapi import FastAPI

OFFER = {
    "Connection": "Upgrade, HTTP2-Settings",
    "Upgrade": "h2c",
    "HTTP2-Settings": "AAMAAABkAAQAAP__",
}
BODY = b'{"steps": 4}'
app = FastAPI()


@app.post("/")
async def echo(numbers: dict[str, int]):
    return numbers


def asked(port, offer):
    """The answer to one request, which is sent in one packet."""
    headers = {"Host": "localhost", "Content-Type": "application/json"} | offer
    headers["Content-Length"] = str(len(BODY))
    lines = ["POST / HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode() + BODY)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        return answer.status, answer.read().decode()


holds = True
for parser in ("httptools", "h11"):
    config = uvicorn.Config(app, http=parser, log_level="error")
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.05)
    for name, offer in (("plain", {}), ("offers h2c", OFFER)):
        status, text = asked(listener.getsockname()[1], offer)
        print(f"{parser}, {name}: {status} {text[:58]}")
        expected = 422 if parser == "httptools" and offer else 200
        holds = holds and status == expected
    server.should_exit = True
    thread.join()
sys.exit(0 if holds else "The behaviour has changed.")
PY
venv/bin/python server.py
