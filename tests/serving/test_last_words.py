"""A stand-alone server whose engine ends: everybody is told, and the process ends with its status."""

import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from benchlib.serving.last_words import ENGINE_ENDED
from tests.serving.test_server import SMALL, free_port, wait_ready

DEADLY = """
import sys
from benchlib.serving.model.pipeline import SDXLPipeline

step = SDXLPipeline.step


def step_or_end(self, works, **options):
    if any(work.request.prompt == "deadly" for work in works):
        raise SystemExit("the device is gone")
    return step(self, works, **options)


SDXLPipeline.step = step_or_end
"""
BY_BENCHLIB = """
from benchlib.__main__ import main
sys.exit(main(["serve", "--model", "tiny", "--port", sys.argv[1]]))
"""
BY_UVICORN = """
from uvicorn.main import main
main(["benchlib.serving.app:app", "--port", sys.argv[1]])
"""


def is_listening(process, port):
    assert process.poll() is None, process.communicate()[0]
    try:
        socket.create_connection(("127.0.0.1", int(port))).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize("way", [BY_BENCHLIB, BY_UVICORN], ids=["benchlib", "uvicorn"])
def test_the_process_ends_with_its_reason_and_a_status_of_its_own(way, monkeypatch):
    monkeypatch.setenv("BENCHLIB_MODEL", "tiny")
    monkeypatch.setenv("BENCHLIB_MAX_BATCH_SIZE", "2")  # a larger one takes longer to get ready
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-c", DEADLY + way, port],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while not is_listening(process, port):
            time.sleep(0.1)  # the server needs the core
        wait_ready(url)
        bodies = [SMALL | {"prompt": prompt} for prompt in ("deadly", "beside", "beside")]
        with ThreadPoolExecutor(3) as clients:
            answers = list(
                clients.map(
                    lambda body: httpx.post(f"{url}/benchmark/generate", json=body, timeout=60),
                    bodies,
                )
            )
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == ENGINE_ENDED, said
    assert answers[0].status_code == 500
    for answer in answers:
        assert answer.status_code == 200 or "the device is gone" in answer.json()["detail"]
    last_line = said.strip().splitlines()[-1]
    assert last_line == (
        "benchlib: the engine has ended: SystemExit: the device is gone; start the server again"
    )
