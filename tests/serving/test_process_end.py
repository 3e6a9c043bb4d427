"""How a process that serves ends: on each of three ways to start, in a step, a load, or before."""

import asyncio.constants
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pytest

from benchlib.__main__ import main

# A model that takes for ever, in one step or to load, as a stand-in for a long decode.
MODEL = """
import os, sys, time
import benchlib.serving.model.loading
from benchlib.serving import standalone
from benchlib.serving.engine.engine import Engine
from benchmarks.fakes.fake_pipeline import FakePipeline

class EndlessPipeline(FakePipeline):
    def step(self, works, *, rows=None):
        if works[0].request.prompt == "endless":
            print("it steps", file=sys.stderr, flush=True)
            time.sleep(10_000)
        return super().step(works, rows=rows)

def load_pipeline(*_, **__):
    print("it loads", file=sys.stderr, flush=True)
    if "ENDLESS_LOAD" in os.environ:
        time.sleep(10_000)
    return EndlessPipeline()

benchlib.serving.model.loading.load_pipeline = load_pipeline
standalone.engine_from = lambda settings: Engine(load_pipeline, settings.engine_options())
"""
SCRIPT = """
from benchlib.serving.connection_limits import ConnectionLimits
from benchlib.serving.server import serve

if "ENDLESS_LOAD" in os.environ:
    print("running on http://127.0.0.1:0", file=sys.stderr, flush=True)
server = serve("tiny", batching="serial", limits=ConnectionLimits(drain_s=0.5))
print("running on", server.url, file=sys.stderr, flush=True)
time.sleep(10_000)
"""
COMMAND = """
from benchlib.__main__ import main

sys.exit(main(["serve", "--batching", "serial", "--drain-s", "0.5", "--port", os.environ["PORT"]]))
"""
UVICORN = """
import uvicorn.main

options = ["--loop", "asyncio", "--port", os.environ["PORT"]]
uvicorn.main.main(["benchlib.serving.app:app", *options])
"""
WAYS = {"script": SCRIPT, "command": COMMAND, "uvicorn": UVICORN}
BODY = '{"prompt": "endless", "num_inference_steps": 1, "width": 64, "height": 64}'


@contextmanager
def started(way, port="0", **environment):
    """A process that serves in one of three ways. Yields it with its errors as a file of lines."""
    usual = {"PORT": port, "BENCHLIB_BATCHING": "serial", "BENCHLIB_DRAIN_S": "0.5"}
    environment = usual | environment
    process = subprocess.Popen(
        [sys.executable, "-c", MODEL + WAYS[way]],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def wait_for(process, words):
    """Read what the process says up to a line with `words`, and return that line."""
    said = []
    for line in process.stderr:
        said.append(line)
        if words in line:
            return line
    pytest.fail(f"never said {words!r}: {''.join(said)}")


def post(port, body=BODY, *, missing=0):
    client = socket.create_connection(("127.0.0.1", port))
    client.settimeout(300)  # for a test that would hang
    head = "POST /benchmark/generate HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    length = len(body) + missing
    client.sendall(f"{head}Content-Length: {length}\r\n\r\n{body}".encode())
    return client


def read_all(client):
    received = b""
    while data := client.recv(2**16):
        received += data
    client.close()
    return received.decode()


def check_end(way, process):
    """The process has ended by SIGTERM, or has its number as status, and is quiet."""
    said = process.stderr.read()
    assert process.wait() == (128 + signal.SIGTERM if way == "script" else -signal.SIGTERM), said
    assert "Traceback" not in said, said


@pytest.mark.parametrize("way", WAYS)
def test_a_stop_answers_everybody_though_a_step_can_not_be_interrupted(way):
    with started(way) as process:
        port = int(wait_for(process, "running on http://").split("127.0.0.1:")[1].split()[0])
        if way != "script":
            wait_until_ready(port)
        inside = post(port)
        wait_for(process, "it steps")
        waiting = [post(port) for _ in range(3)]
        half = post(port, missing=1)
        stranger = socket.create_connection(("127.0.0.1", port))
        health(port)  # by now the others have been read
        process.send_signal(signal.SIGTERM)
        for client in (inside, *waiting, half):
            answer = read_all(client)
            assert answer.startswith("HTTP/1.1 503 Service Unavailable"), answer
            assert "the server is stopping" in answer
        assert read_all(stranger) == ""
        check_end(way, process)


@pytest.mark.parametrize("others", [0, 7])
def test_a_second_interrupt_of_uvicorn_ends_the_process_at_once(others):
    """Python's own end would wait for the step, or crash in it. asyncio cancels in any order."""
    with started("uvicorn", BENCHLIB_DRAIN_S="600") as process, ExitStack() as clients:
        port = int(wait_for(process, "running on http://").split("127.0.0.1:")[1].split()[0])
        wait_until_ready(port)
        clients.enter_context(post(port))
        wait_for(process, "it steps")
        for _ in range(others):
            clients.enter_context(post(port))
        health(port)  # by now the others have been read
        process.send_signal(signal.SIGINT)
        wait_for(process, "Shutting down")
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait() == 128 + signal.SIGINT, said
        assert "Traceback" not in said, said


def health(port, path="/health"):
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
        return client.recv(100).decode()


def wait_until_ready(port):
    while "200 OK" not in health(port, "/ready"):
        time.sleep(0.05)


@pytest.mark.parametrize("way", WAYS)
def test_a_load_ends_with_its_process(way):
    with started(way, ENDLESS_LOAD="1") as process:
        wait_for(process, "running on http://")
        wait_for(process, "it loads")
        process.send_signal(signal.SIGTERM)
        check_end(way, process)


@pytest.mark.parametrize(("way", "status"), [("command", 1), ("uvicorn", 3)])
def test_a_taken_port_ends_the_process_before_the_model_loads(way, status):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with started(way, port) as process:
            said = process.stderr.read()
            assert process.wait() == status, said
    assert "in use" in said
    assert "it loads" not in said
    assert "Traceback" not in said, said


def test_uvicorn_ends_with_the_reason_where_the_model_can_not_be_had():
    ended = subprocess.run(
        [sys.executable, "-m", "uvicorn", "benchlib.serving.app:app", "--port", "0"],
        env=os.environ | {"BENCHLIB_MODEL": "nothing"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("benchlib: ModelError: model: 'nothing' is none of")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_a_port_that_is_no_port_is_refused(port, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["serve", "--port", port])
    assert f"--port: {port} is not between 0 and 65535" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux sets another's limits")
def test_many_idle_connections_at_few_open_files_leave_a_way_in_and_a_short_log():
    with started("command") as process:
        port = int(wait_for(process, "running on http://").split("127.0.0.1:")[1].split()[0])
        wait_until_ready(port)
        _, most = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (100, most))
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(150)]
        for _ in range(3):
            assert "200 OK" in health(port)
        for client in idle:
            client.close()
        # asyncio accepts again after this time, and logs an error if the socket is closed by then.
        time.sleep(1.5 * asyncio.constants.ACCEPT_RETRY_DELAY)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
        process.wait()
    assert len(said) < 2000, said
