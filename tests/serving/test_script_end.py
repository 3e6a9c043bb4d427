"""A script that ends without `server.stop()` ends in order and prints no error."""

import subprocess
import sys

import pytest

SCRIPT = """
import atexit
import socket
import time
import weakref


def report():  # registered before `server` is imported, so it is called after the server has stopped
    answers = [client.recv(100).split(b"\\r")[0].decode() for client in clients]
    print(*sorted(set(answers)), sep="\\n")
    print("engine:", engine.state)
    print("model freed:", model() is None, flush=True)


atexit.register(report)

from benchlib.serving.connection_limits import ConnectionLimits
from benchlib.serving.server import serve
from benchmarks.fakes.fake_pipeline import FakePipeline



class SlowPipeline(FakePipeline):
    def step(self, works, *, rows=None):
        if works[0].request.prompt == "slow":
            time.sleep(0.5)
        return super().step(works, rows=rows)


def load_pipeline(*_, **__):
    pipe = SlowPipeline()
    global model
    model = weakref.ref(pipe)
    return pipe


import benchlib.serving.model.loading

benchlib.serving.model.loading.load_pipeline = load_pipeline
running = serve("tiny", batching="serial", limits=ConnectionLimits(drain_s=DRAIN_S))
engine = running._engine
clients = []


def post(path, body):
    client = socket.create_connection(("127.0.0.1", int(running.url.rsplit(":", 1)[1])))
    head = f"POST {path} HTTP/1.1\\r\\nHost: here\\r\\nContent-Type: application/json\\r\\n"
    client.sendall(f"{head}Content-Length: {len(body)}\\r\\n\\r\\n{body}".encode())
    clients.append(client)
"""

# The image's file is written while the server drains. At that time no executor of the standard
# library accepts a call.
ONE_AT_WORK = """
post("/v1/images/generations", '{"prompt": "slow", "num_inference_steps": 3}')
while not engine.running:
    time.sleep(0.01)
"""

# Twenty requests of 75 s each. The script's end must not wait for them.
MUCH_QUEUED = """
for _ in range(20):
    post("/benchmark/generate", '{"prompt": "slow", "num_inference_steps": 150, "width": 64, "height": 64}')
while engine.waiting < 19:
    time.sleep(0.01)
"""

# Nobody has asked for anything, and the script has an error of its own.
OWN_ERROR = """
post("/benchmark/generate", "")
clients.pop().close()
raise ZeroDivisionError
"""


@pytest.mark.parametrize(
    ("drain_s", "ending", "answer"),
    [(100, ONE_AT_WORK, "HTTP/1.1 200 OK"), (1, MUCH_QUEUED, "HTTP/1.1 503 Service Unavailable")],
    ids=["one at work", "much queued"],
)
def test_a_script_that_ends_stops_its_server_in_order(drain_s, ending, answer):
    ended = subprocess.run(
        [sys.executable, "-c", f"DRAIN_S = {drain_s}\n{SCRIPT}{ending}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    words = [answer, "engine: stopped", "model freed: True"]
    assert ended.stdout.splitlines() == words, ended.stderr
    assert ended.returncode == 0
    assert ended.stderr == ""


def test_a_script_that_fails_shows_its_own_error_alone():
    ended = subprocess.run(
        [sys.executable, "-c", f"DRAIN_S = 100\n{SCRIPT}{OWN_ERROR}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stdout.split("\n") == ["", "engine: stopped", "model freed: True", ""]
    assert ended.stderr.count("Traceback") == 1
    assert ended.stderr.endswith("ZeroDivisionError\n")


FORKED = """
import os
import signal

import httpx

from benchlib.serving.server import serve
from benchmarks.fakes.fake_pipeline import FakePipeline

server = serve(FakePipeline(), name="before")
url = server.url
child = os.fork()
if child == 0:
    signal.pause()
try:
    server.stop()
    try:
        httpx.get(url, timeout=60)
    except httpx.ConnectError:
        print("refused")
    with serve(FakePipeline(), name="after", port=int(url.rsplit(":", 1)[1])) as server:
        print(httpx.get(f"{server.url}/health").status_code)
finally:
    os.kill(child, signal.SIGKILL)
"""


def test_a_stop_frees_the_port_although_a_forked_process_has_the_socket():
    command = [sys.executable, "-c", FORKED]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout.split() == ["refused", "200"], ended.stderr
